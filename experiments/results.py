"""Read results/: all runs of all sweeps, the names of their settings, and groups of comparable runs.

for run in every_run():
    print(run["file"], run["method"], run["report"]["dataset"], run["report"]["test_accuracy"])
"""

import json
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataloaders import DATASETS
from linearconv_variants import LINEARCONV_TYPES
from training.errors import UsageError
from training.report import ROOT

RESULTS = ROOT / "results"  # this repository's own results
USERS = ROOT / "runs"  # results of users, ignored by git
CONDITIONS = ("architecture", "dataset", "recipe", "epochs")  # comparable runs have these in common
PAPER_WEIGHT = 0.01  # weight of the regulariser
PAPER_EPOCHS = 250
OTHERS = {"octave": "octave", "basis": "filter basis", "ghost": "Ghost module", "svd": "SVD pair"}  # baselines by type
REPORTED = re.compile(r"(-t|-r|-s|--alpha|--width|--reg-weight|--recipe) \S+")  # options that are in the report
TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashionmnist": "Fashion-MNIST",
}
NUMBER = (int, float)
RUN = {"run": str, "setting": str, "report": dict, "log": list}  # entries of a run that tables need, with their types
NUMBERS = "parameters nonzero_parameters flops_paper macs_inference epochs alpha test_accuracy best_test_accuracy"
REPORT = {"architecture": str, "type": str, "dataset": str, "best_epoch": NUMBER}
REPORT |= dict.fromkeys(NUMBERS.split(), NUMBER)


class NoResults(UsageError):
    """A result has not been measured; the message names the result."""


def read_json(path: Path, **types: type) -> dict:
    """Return the object in a JSON file, whose entries must have some types.

    Raises:
        NoResults: if the file does not exist.
        UsageError: if the file is damaged or has other entries; the message names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoResults(f"there is no {path.name}") from None
    except ValueError as error:  # for text that is not UTF-8 too
        raise UsageError(f"{path} is not JSON: {error}") from None
    check_types(data, types, path)
    return data


def check_types(data: object, types: dict[str, type | tuple[type, ...]], place: object) -> None:
    """Raise a UsageError that names the place if `data` is not a dict with values of these types."""
    if not isinstance(data, dict):
        raise UsageError(f"{place} is {json.dumps(data)[:20]}, not an object")
    for key, kind in types.items():
        if not isinstance(data.get(key), kind):
            raise UsageError(f"{place} has no valid {key!r}: {json.dumps(data.get(key))[:20]}")


def check_run(run: object, place: object) -> None:
    """Raise a UsageError that names the place if a run of a result file lacks what tables need."""
    check_types(run, RUN, place)
    check_types(run["report"], REPORT, f"{place}, report")
    for epoch in run["log"]:
        check_types(epoch, {"test_accuracy": NUMBER}, f"{place}, log")


def read_runs(path: Path) -> dict:
    """Return the content of the result file of a sweep, `{"note": ..., "runs": [...]}`."""
    record = read_json(path, note=str, runs=list)
    for index, run in enumerate(record["runs"]):
        check_run(run, f"{path}, run {index}")
    return record


def every_run(folder: Path = RESULTS, pattern: str = "*") -> Iterator[dict]:
    """Yield the entries of all runs of all sweeps, with three additions.

    `file` is the result's name, and `method` is the text of :func:`method`. The report is completed: `recipe` defaults
    to `"paper"`; for an imagefolder, `dataset` is the folder's name or, for an older run, comes from the file name.
    """
    for path in sorted(folder.glob(f"{pattern}.json")):
        keys = read_json(path).keys()
        if not {"note", "runs"} <= keys or "study" in keys:  # the file is not of a sweep, or of a compression study
            continue
        named = [name for name in DATASETS if name in path.stem]
        label = max(named, key=len, default="imagefolder")  # the longer name: cifar100, not cifar10
        for run in read_runs(path)["runs"]:
            report = {"recipe": "paper"} | run["report"]
            if report["dataset"] == "imagefolder":
                report["dataset"] = run.get("dataset") or label
            yield run | {"file": path.stem, "report": report, "method": method(run)}


def method(run: dict) -> str:
    """Return the name of a run's setting: `Conv`, `-L`, `-Lr`, `-LRr` as in the paper; other settings by their values.

    For example, `Conv, width 0.75`, `rank 0.5 P`, `rank 4`, `sparse 0.25`, `-Lr, alpha 0.25` or `-Lr, --no-amp`.
    """
    report, setting = run["report"], run["setting"]
    kind, rank, weight = report["type"], report["rank"], report["reg_weight"]
    name = {"dense": "Conv", "sparse": f"sparse {report['sparsity']}", **OTHERS}.get(kind, kind)
    if kind == "rank":
        name = ("-Lr" if weight else "-L") if rank == 1 else f"rank {rank} P"
    if kind == "lowrank":
        name = "-LRr" if rank == 10 and weight else f"rank {rank}"
    parts = [name]
    if report["alpha"] != 0.5 and kind != "dense":
        parts.append(f"alpha {report['alpha']:g}")
    if report["width"] != 1:
        parts.append(f"width {report['width']:g}")
    if kind in LINEARCONV_TYPES and not weight and name != "-L":
        parts.append("no regulariser")
    if kind in LINEARCONV_TYPES and "--reg-weight" in setting and weight not in (0, PAPER_WEIGHT):
        parts.append(f"regulariser {weight:g}")
    parts.append(REPORTED.sub("", setting).strip())
    return ", ".join(part for part in parts if part)


def comparable(runs: Iterable[dict], key: str = "method") -> dict[tuple, dict[str, list[dict]]]:
    """Group the runs of :func:`every_run` that compare: by `CONDITIONS`, then by method (or setting), one per seed."""
    groups = {}
    for run in runs:
        methods = groups.setdefault(tuple(run["report"][name] for name in CONDITIONS), {})
        same = methods.setdefault(run[key], [])
        if run["report"]["seed"] not in [other["report"]["seed"] for other in same]:
            same.append(run)
    return groups


def describe(conditions: tuple, seeds: Iterable[int]) -> str:
    """Return the description of a group from its conditions, and the number of seeds of each setting.

    For example, `Base, CIFAR-10, the paper's recipe, 250 epochs, 1 seed`.
    """
    network, dataset, recipe, epochs = conditions
    return f"{network}, {TITLES.get(dataset, dataset)}, {describe_training(recipe, epochs, seeds)}"


def describe_training(recipe: str, epochs: int, seeds: Iterable[int]) -> str:
    """Return, for example, `the paper's recipe, 100 of 250 epochs, 1 seed`."""
    numbers = sorted(set(seeds))
    shown = " to ".join(map(str, numbers[:1] + numbers[1:][-1:]))
    name = {"paper": "the paper's recipe", "fast": "short recipe"}.get(recipe, f"{recipe} recipe")
    length = f"{epochs} of {PAPER_EPOCHS}" if recipe == "paper" and epochs < PAPER_EPOCHS else epochs
    plural = "s" if numbers[-1] > 1 else ""
    return f"{name}, {length} epochs, {shown} seed{plural}"


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (divided by n - 1), which is None for a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_over_seeds(runs: Iterable[dict], key: str = "test_accuracy") -> tuple[float, float | None]:
    """Return :func:`mean_and_deviation` of a number in the reports of runs."""
    return mean_and_deviation(run["report"][key] for run in runs)
