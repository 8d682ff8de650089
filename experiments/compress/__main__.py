"""The compression study: what a trained network keeps at which size, by LinearConv and by other ways.

    python -m experiments.compress models/base_xcnn.py:Base --name compression_base --seeds 0 1 2 --dataset cifar10
    python -m experiments.compress ... --budgets 0.5 0.25 --ways linearconv svd --tune 2      # a part of it
    python -m experiments.compress ... --jobs 2                # two runs side by side; --shard, --dry-run as for sweeps
    python -m experiments.compress ... --table                 # the table of the finished runs

For every seed, the dense network is trained with the short recipe (--recipe, --epochs). Then every way reduces it to
every share of its parameters (ways.py): accuracy at once, and after --tune epochs of `--recipe tune` with and without
the dense network as teacher. From scratch, with the same sizes and the same total number of epochs: LinearConv, the
thinner dense network, and Ghost modules. `dense` is the dense network, trained on for the same epochs. BatchNorm's
statistics are computed anew after each conversion, for `dense` too. Other options apply to every run.

The study is a sweep: the same command resumes it. Everything is in runs/<name>.json, the table in runs/<name>.md, and
`python -m experiments.figures compression --results <name> --results-folder runs` draws it.
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
import torch.nn as nn

from baselines import method_of
from dataloaders import describe
from experiments.compress.table import markdown
from experiments.compress.unit import DENSE
from experiments.compress.ways import WAYS
from experiments.sweep.command import carry_out, parse_sweep, sweep_parser
from experiments.sweep.plan import plan_run, script_parser, shortest, shown_command, unique
from experiments.sweep.runner import Results, Run
from experiments.thinner import networks_of, width_for
from linearconv_convert.exporting import atomic_file
from linearconv_variants import non_negative_int, positive_float, positive_int, positive_share
from training.counting import count_parameters
from training.errors import EXPECTED, UsageError, report_failure
from training.options import parse_arguments
from training.recipe import SHORT, TUNE
from training.report import ROOT

BUDGETS = (0.75, 0.57, 0.5, 0.4, 0.25, 0.15, 0.1)
SCRATCH = {"scratch-linearconv": "rank", "scratch-thinner": None, "scratch-ghost": "ghost"}  # way: type
ALPHAS = 1024  # candidate values for a size
UNIT = ROOT / "experiments" / "compress" / "unit.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = sweep_parser("compress", __doc__)
    add = parser.add_argument
    add("network", help="a network of models/, as models/base_xcnn.py:Base")
    every = [DENSE, *WAYS, *SCRATCH]
    add("--budgets", type=positive_share, nargs="+", default=BUDGETS, help="default: 0.75 0.57 0.5 0.4 0.25 0.15 0.1")
    add("--ways", choices=every, nargs="+", default=every, help="default: all")
    add("--tune", type=positive_int, nargs="*", default=[2, 6], help="epochs after conversion (default: 2 6)")
    add("--tune-lr", type=positive_float, default=TUNE.lr, metavar="LR", help=f"of tuning (default: {TUNE.lr:g})")
    add("--calibrate", type=non_negative_int, default=1000, metavar="N", help="training images (default: 1000)")
    options, extra = parse_sweep(parser, sys.argv[1:] if argv is None else argv)
    try:
        runs = plan(options, extra)
        kept = {"study": options.network}
        if not (options.table or options.dry_run):  # the dense networks first, for all shards
            dense = [run for run in runs if run.setting == "-t dense"]
            whole = Namespace(**{**vars(options), "shard": (1, 1)})
            if code := carry_out(dense, whole, lambda results: None, **kept):
                return code
        return carry_out(runs, options, show, **kept)
    except EXPECTED as error:
        return report_failure(error, "compress")


def plan(options: Namespace, extra: Sequence[str]) -> list[Run]:
    """Return all runs: dense networks, units at once and tuned (unit.py), networks from scratch."""
    script, _, name = options.network.partition(":")
    networks = networks_of(Path(script))
    if name not in networks:
        raise UsageError(f"{script} has no network {name!r}: give {script}:{next(iter(networks))}")
    if "--recipe" not in extra:
        extra = ["--recipe", "fast", *extra]
    parsed = parse_arguments(script_parser(name), extra)
    if not parsed.dataset:
        raise UsageError("give the data, as in --dataset cifar10")
    if parsed.recipe not in SHORT:
        raise UsageError("give a short recipe, as in --recipe fast")
    if "pruning" in options.ways and not importlib.util.find_spec("torch_pruning"):
        print("pruning is left out: pip install torch-pruning")
        options.ways = [way for way in options.ways if way != "pruning"]
    info = describe(parsed.dataset, parsed.data_root, parsed.image_size)
    build = partial(networks[name], in_channels=info.in_channels, num_classes=info.num_classes)
    epochs = options.epochs or SHORT[parsed.recipe].changed_by(parsed).epochs
    longer = [*extra, "--epochs", str(epochs + max(options.tune, default=0))]
    run = partial(plan_run, Path(script), options.ckpt / options.name, network=name)
    dense = [run(["-t", "dense"], shared=[*extra, "--epochs", str(epochs)], seed=seed) for seed in options.seeds or [0]]
    tunings = [(count, teacher) for count in options.tune for teacher in (False, True)]
    at_once, tuned, scratch = [], [], []
    for one, budget, way in product(dense, options.budgets, options.ways):
        if way in WAYS:
            at_once.append(unit(one, way, budget, options, extra))
            tuned += [unit(one, way, budget, options, extra, *tuning) for tuning in tunings]
        elif way == DENSE:  # the same for all budgets
            tuned += [unit(one, way, 1.0, options, extra, count) for count in (0, *options.tune)]
        elif words := from_scratch(build, SCRATCH[way], budget, parsed.width):
            scratch.append(run(*words, shared=longer, seed=one.settings["seed"]))
    return unique([*dense, *at_once, *tuned, *scratch])


def unit(
    dense: Run,
    way: str,
    budget: float,
    options: Namespace,
    extra: Sequence[str],
    epochs: int = 0,
    teacher: bool = False,
) -> Run:
    """Return the run of unit.py for one way and size, from the run of a dense network."""
    seed, words = dense.settings["seed"], ["--way", way, "--budget", shortest(budget)]
    name = f"{way}-{shortest(budget)}"
    own = {"way": way, "budget": budget, "tune": epochs, "teacher": teacher, "calibrate": options.calibrate}
    if epochs:
        words += ["--tune", str(epochs), *["--teacher"] * teacher]
        name += f"-tune{epochs}" + "-teacher" * teacher
    if epochs and options.tune_lr != TUNE.lr:
        words += ["--tune-lr", f"{options.tune_lr:g}"]
        name += f"-lr{options.tune_lr:g}"
        own["tune_lr"] = options.tune_lr
    arguments = [*words, "--calibrate", str(options.calibrate), *extra, "--seed", str(seed)]
    data_root = parse_arguments(script_parser(), extra).data_root
    return replace(
        dense,
        name=f"{name}-seed{seed}",
        script=UNIT,
        setting=" ".join(words),
        arguments=["--network", options.network, "--dense", str(dense.folder), *arguments],
        settings=dense.settings | own,
        folder=dense.folder.with_name(f"{name}-seed{seed}"),
        command=shown_command(["python", UNIT.relative_to(ROOT).as_posix(), *arguments], data_root),
    )


@cache
def from_scratch(
    build: Callable[..., nn.Module], type: str | None, budget: float, width: float
) -> tuple[list[str], list[str]] | None:
    """Return the options (of the variant, others) for a network from scratch with a share of the dense parameters."""
    with torch.device("meta"):
        target = int(budget * count_parameters(build(width=width)))
    if type is None:
        return ["-t", "dense"], ["--width", shortest(width_for(build, target))]
    low, high = 0, ALPHAS  # the number of parameters rises with alpha
    while high - low > 1:
        middle = (low + high) // 2
        method = method_of(Namespace(type=type, alpha=middle / ALPHAS, rank=None, sparsity=None))
        with torch.device("meta"):
            size = count_parameters(method.build(build, width=width))
        low, high = (middle, high) if size <= target else (low, middle)
    if low == 0:
        print(f"{type} from scratch is left out at {budget:g}: it is larger with one primary filter a layer")
        return None
    return ["-t", type, "--alpha", shortest(low / ALPHAS)], []


def show(results: Results) -> None:
    """Print and write the table."""
    lines = markdown(results.runs)
    print("\n".join(lines))
    path = results.path.with_suffix(".md")
    with atomic_file(path) as part:
        part.write_text("\n".join(lines) + "\n")
    print(f"written: {results.path}, {path.name}")


if __name__ == "__main__":
    sys.exit(main())
