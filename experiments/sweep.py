"""Runs a training script over lists of settings, data sets and seeds, and compares accuracy with parameters and FLOPs.

    python experiments/sweep.py models/base_xcnn.py --name base -t dense rank sparse -r 0.1 0.25 0.5 1 -s 0.25 0.5 0.75
    python experiments/sweep.py ... --seeds 0 1 2 --datasets cifar10 svhn --alpha 0.25 0.5 --epochs 20
    python experiments/sweep.py ... --jobs 4                 # four runs side by side
    python experiments/sweep.py ... --shard 2/8              # the 2nd of 8 shares, for a scheduler
    python experiments/sweep.py ... --dry-run                # lists the runs and how far they are
    python experiments/sweep.py ... --table                  # table and plot of what is done
    python experiments/sweep.py ... -- --batch-size 100      # what stands behind -- goes to every run

Each run is a process of its own in ckpt/<name>/<run>/, with its output in output.txt there. The same command again
skips what is done and goes on with what was interrupted; several sweeps may share the folder, as each run is locked
while it goes. When all runs are done, their reports are written to results/<name>.json, a table is printed, and
results/<name>.png is drawn.

Which values go with which type: -s with sparse, -r with rank and lowrank; where both of these are asked for, shares up
to 1 go to rank and numbers above 1 to lowrank. Left out, -t is what the values belong to. A type without values takes
the script's default. dense, the reference, has neither values nor alpha and comes once per data set and seed.
"""

import fcntl
import itertools
import os
import re
import shlex
import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder

import torch

from dataloaders import DATASETS
from experiments.sweep_runs import Run, Runner, cores, is_locked
from experiments.sweep_table import markdown, plot
from training.files import write_json
from training.options import TYPES, OneLineParser, Recipe, UsageError, fail, parse_arguments, positive_int, run_name

ELSEWHERE = ("device", "data_root", "download", "output", "resume", "may_change", "save_every", "tensorboard",
             "program")  # may differ when a run goes on  # fmt: skip
CORES_PER_JOB = 4  # on a CPU, where --jobs is left out


# ---- which runs ---------------------------------------------------------------------------------------------------


def plan(options, extra):
    """The runs of a sweep, one seed after the other, so that every setting has a result early.

    Raises:
        UsageError, SystemExit: for values that the training scripts refuse.
    """
    variants = list(_variants(options))
    alphas = [["--alpha", _text(alpha)] for alpha in options.alpha or []] or [[]]
    runs = {}
    for seed, dataset, network, variant in itertools.product(
        options.seeds or [None], options.datasets or [None], options.network or [None], variants
    ):
        for alpha in [[]] if variant[1] == "dense" else alphas:
            arguments = [*extra, *variant, *alpha]
            for option, value in (("--network", network), ("--dataset", dataset), ("--seed", seed)):
                arguments += [] if value is None else [option, str(value)]
            arguments += ["--epochs", str(options.epochs)] if options.epochs else []
            run = _make_run(options, arguments, network)
            if runs.setdefault(run.name, run).settings != run.settings:
                raise UsageError(f"two settings would share the name {run.name}: give rounder values")
    return list(runs.values())


def _variants(options):
    ranks, sparsities = options.rank or [], options.sparsity or []
    types = list(dict.fromkeys(options.type or ()))
    if not types:
        types += ["rank"] * any(rank <= 1 for rank in ranks) + ["lowrank"] * any(not rank <= 1 for rank in ranks)
        types = types + ["sparse"] * bool(sparsities) or ["rank"]
    values = {"rank": ranks, "lowrank": ranks, "sparse": sparsities, "dense": []}
    if "rank" in types and "lowrank" in types:
        values |= {"rank": [r for r in ranks if r <= 1], "lowrank": [r for r in ranks if not r <= 1]}
    for given, option, owners in ((ranks, "-r", {"rank", "lowrank"}), (sparsities, "-s", {"sparse"})):
        if given and not owners & set(types):
            raise UsageError(
                f"{option} has no meaning with -t {' '.join(types)}: it belongs to {' and '.join(sorted(owners))}"
            )
    for type in types:
        option = "-s" if type == "sparse" else "-r"
        yield from ([["-t", type, option, _text(value)] for value in values[type]] or [["-t", type]])


def _text(value):
    return str(int(value)) if value.is_integer() else repr(value)


def _make_run(options, arguments, network):
    network = network or options.script.stem.removesuffix("_xcnn")
    parsed = parse_arguments({network: None}, Recipe(lr=1e-3, epochs=1), arguments)  # ends here if any is wrong
    name = run_name(parsed, parsed.dataset or "default")
    settings = {key: value for key, value in vars(parsed).items() if key not in ELSEWHERE}
    if not {"--amp", "--no-amp"} & set(arguments):
        settings["amp"] = None  # the default is the machine's
    alpha = parsed.alpha if parsed.alpha != 0.5 and parsed.type != "dense" else None
    values = {"-r": parsed.rank, "-s": parsed.sparsity, "--alpha": alpha}
    given = [f" {option} {value:g}" for option, value in values.items() if value is not None]
    setting = f"-t {parsed.type}{''.join(given)}"
    script = options.script.resolve()
    script = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    shown = [re.sub(rf"^(--.*=)?{re.escape(parsed.data_root)}$", r"\g<1>DIR", word) for word in arguments]
    command = shlex.join(["python", script, *shown])
    settings["script"] = script
    return Run(name, setting, arguments, settings, options.ckpt / options.name / name, command, parsed.device)


# ---- the command --------------------------------------------------------------------------------------------------


def shard(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text}")
    return int(match[1]), int(match[2])


def parse(argv):
    parser = OneLineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("script", type=Path, help="a training script of models/")
    add("--name", required=True, help="of the sweep: its folder in ckpt/ and its files in results/")
    add("-t", "--type", choices=TYPES, nargs="+")
    add("-r", "--rank", type=float, nargs="+", help="for rank and lowrank")
    add("-s", "--sparsity", type=float, nargs="+", help="for sparse")
    add("--alpha", type=float, nargs="+")
    add("--seeds", type=int, nargs="+")
    add("--datasets", choices=DATASETS, nargs="+", help="default: the script's choice")
    add("--network", nargs="+", help="networks of the script's family; default: the first")
    add("--epochs", type=positive_int)
    add("--jobs", type=positive_int, help=f"runs side by side (default: one per GPU, or per {CORES_PER_JOB} cores)")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="run the I-th of N shares only")
    add("--dry-run", action="store_true", help="list the runs and how far they are")
    add("--table", action="store_true", help="run nothing: table and plot of what is done")
    add("--ckpt", type=Path, default=ROOT / "ckpt", metavar="DIR", help="for the runs (default: ckpt)")
    add("--results", type=Path, default=ROOT / "results", metavar="DIR", help="for table and plot (default: results)")
    split = argv.index("--") if "--" in argv else len(argv)
    options, extra = parser.parse_args(argv[:split]), argv[split + 1 :]
    if not options.script.is_file():
        parser.error(f"there is no script {options.script}")
    if not re.fullmatch(r"\w[\w.-]*", options.name):
        parser.error(f"--name must be a plain file name, got {options.name!r}")
    if taken := {"--network", "--output", "--resume", "--count-only"} & {word.split("=")[0] for word in extra}:
        parser.error(f"{' '.join(sorted(taken))} cannot stand behind --: the sweep gives each run its own")
    return options, extra


def gpus_for(device):
    """The GPUs to spread runs over, as CUDA_VISIBLE_DEVICES names them; none where the device was chosen."""
    if device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(index) for index in range(count)])[:count]


def main(argv=None):
    """Do what the command line says; returns the exit code."""
    options, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        return sweep(options, extra)
    except (UsageError, OSError) as error:
        return fail(error, "sweep.py")
    except KeyboardInterrupt:  # before the first run or after the last
        return 130


def sweep(options, extra):
    every = plan(options, extra)
    states = {run.name: run.state() for run in every}  # folders of other runs are told before anything starts
    runs = every[options.shard[0] - 1 :: options.shard[1]]
    if options.dry_run:
        for run in runs:
            print(f"{'running' if is_locked(run.lock) else states[run.name]:12s} {run.name:40s} {run.command}")
        return 0
    if not options.table:
        gpus = gpus_for(every[0].device)
        jobs = options.jobs or len(gpus) or (max(1, cores() // CORES_PER_JOB) if every[0].device == "cpu" else 1)
        runner = Runner(options.script, runs, jobs, gpus)
        print(f"{len(runs)} runs, {runner.ended} done; {jobs} at a time, threads of each: {runner.threads}", flush=True)
        runner.go()
        done = sum(run.state() == "done" for run in runs)
        if runner.signals:
            print(f"interrupted: {done} of {len(runs)} runs are done, the same command goes on", file=sys.stderr)
            return 128 + runner.signals[0]
        if runner.failed:
            print(f"{len(runner.failed)} of {len(runs)} runs failed: {', '.join(runner.failed)}", file=sys.stderr)
            return 1
    done = [run for run in every if run.state() == "done"]
    if options.table and not done:
        raise UsageError("no run is done yet: leave out --table to start them")
    if not options.table and len(done) < len(every):
        print(f"{len(every) - len(done)} runs of other shards are not done: the last shard to end makes the table")
        return 0
    show(options, [run.entry() for run in done], len(every))
    return 0


def show(options, entries, planned):
    """Write the reports, draw the plot, print the table."""
    if len(entries) < planned:
        print(f"from {len(entries)} of {planned} runs:")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{options.name}.json"
    with open(options.ckpt / options.name / "results.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two shards may end at the same time
        write_json(path, {"runs": entries})
        drawn = plot(entries, path.with_suffix(".png"))
    print("\n".join(markdown(entries)))
    print(f"written: {path}" + (f", {path.with_suffix('.png').name}" if drawn else ""))
    if not drawn:
        print("no plot: matplotlib is not installed (pip install matplotlib)")


if __name__ == "__main__":
    sys.exit(main())
