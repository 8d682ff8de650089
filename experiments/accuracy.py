"""Train one architecture as dense, full rank, rank 10 (and whatever else is asked for) and compare accuracies.

    python experiments/accuracy.py models/base_xcnn.py --name base_cifar10 --epochs 20 \
        -- --dataset imagefolder --data-root DIR

Runs the script once per variant, one after another, with the options behind `--` handed on, and writes
results/<name>.json: every run's report and per-epoch log. A run that is finished is not run again, one that was
interrupted goes on from its last checkpoint. The runs themselves lie in ckpt/<name>/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

from training.checkpoints import PATTERN
from training.files import write_json
from training.run_folder import LOG, REPORT

VARIANTS = ("-t dense", "-t rank -r 1", "-t lowrank -r 10")


def run(script, variant, epochs, extra, folder):
    """Bring one run to its end; returns its report and its log, a dict per epoch."""
    if not (folder / REPORT).exists():
        command = [sys.executable, str(script), *variant.split(), "--epochs", str(epochs), "--output", str(folder)]
        resume = ["--resume"] if any(folder.glob(PATTERN)) else []
        code = subprocess.run([*command, *extra, *resume]).returncode
        if code:
            sys.exit(code)
    report = json.loads((folder / REPORT).read_text())
    log = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return report, log


def markdown(runs):
    """A table of the runs, the first being what the others are compared with."""
    lines = [
        "| variant | parameters | test accuracy after the last epoch | against the first row | best (epoch) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    first = runs[0]["report"]["test_accuracy"]
    for entry in runs:
        report = entry["report"]
        last, best = report["test_accuracy"], report["best_test_accuracy"]
        lines.append(
            f"| `{entry['variant']}` | {report['parameters']:,} | {last:.2f} % | {last - first:+.2f} "
            f"| {best:.2f} % ({report['best_epoch']}) |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="a training script of models/")
    parser.add_argument("--name", required=True, help="of the result: results/NAME.json")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="options of each variant, quoted")
    parser.add_argument("--note", default="", help="what the data are, kept in the result")
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, extra = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if not options.script.is_file():
        parser.error(f"there is no script {options.script}")

    runs = []
    for variant in options.variants:
        folder = ROOT / "ckpt" / options.name / variant.replace(" ", "").strip("-")
        report, log = run(options.script, variant, options.epochs, extra, folder)
        report["command"] = f"python {options.script} {variant} --epochs {options.epochs}"
        runs.append({"variant": variant, "report": report, "log": log})
        result = ROOT / "results" / f"{options.name}.json"
        write_json(result, {"note": options.note, "runs": runs})
    print("\n".join(markdown(runs)))
    print(f"written: {result.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
