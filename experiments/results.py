"""Read results/: all runs of all sweeps, the names of their settings, and groups of comparable runs.

for run in every_run():
    print(run["file"], run["method"], run["report"]["dataset"], run["report"]["test_accuracy"])
"""

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dataloaders import DATASETS
from linearconv_variants import LINEARCONV_TYPES
from training.errors import UsageError
from training.report import ROOT

RESULTS = ROOT / "results"  # this repository's own results
USERS = ROOT / "runs"  # results of users, ignored by git
CONDITIONS = ("architecture", "dataset", "recipe", "epochs")  # comparable runs have these in common
PAPER_WEIGHT = 0.01  # weight of the regulariser
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
RUN = {"run": str, "setting": str, "report": dict, "log": list}  # what tables need of a run: key and type
COUNTED = "parameters nonzero_parameters flops_paper macs_inference"
MEASURED = "epochs alpha test_accuracy best_test_accuracy best_epoch"
REPORT = {"architecture": str, "type": str, "dataset": str}
REPORT |= dict.fromkeys(f"{COUNTED} {MEASURED}".split(), NUMBER)


class NoResults(UsageError):
    """A result has not been measured; the message names the result."""


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        NoResults: if the file does not exist.
        UsageError: if the file is not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoResults(f"there is no {path.name}") from None
    except ValueError as error:  # for text that is not UTF-8 too
        raise UsageError(f"{path} is not JSON: {error}") from None
    check_types(data, {}, path)
    return data


def check_types(data: object, types: dict[str, type | tuple[type, ...]], place: object) -> None:
    """Raise a UsageError that names the place if `data` is not a dict with values of these types."""
    if not isinstance(data, dict):
        raise UsageError(f"{place} is {json.dumps(data)[:20]}, not an object")
    for key, kind in types.items():
        if not isinstance(data.get(key), kind):
            raise UsageError(f"{place} has no valid {key!r}: {json.dumps(data.get(key))[:20]}")


def read_runs(path: Path) -> dict:
    """Return the content of the result file of a sweep, `{"note": ..., "runs": [...]}`."""
    record = read_json(path)
    check_types(record, {"note": str, "runs": list}, path)
    for index, run in enumerate(record["runs"]):
        place = f"{path}, run {index}"
        check_types(run, RUN, place)
        check_types(run["report"], REPORT, f"{place}, report")
        for epoch in run["log"]:
            check_types(epoch, {"test_accuracy": NUMBER}, f"{place}, log")
    return record


def load(name: str, folder: Path = RESULTS, **types: type) -> dict:
    """Return the content of `<folder>/<name>.json`, see :func:`read_json`, whose entries must have some types."""
    record = read_json(folder / f"{name}.json")
    check_types(record, types, folder / f"{name}.json")
    return record


def every_run(folder: Path = RESULTS, pattern: str = "*") -> Iterator[dict]:
    """Yield the entries of all runs of all sweeps, with three additions.

    `file` is the result's name, and `method` is the text of :func:`method`. The report is completed: `recipe` defaults
    to `"paper"`, and for an imagefolder `dataset` is the data set that the run, its file or the file's note names.
    """
    for path in sorted(folder.glob(f"{pattern}.json")):
        keys = read_json(path).keys()
        if not {"note", "runs"} <= keys or "study" in keys:  # the file is not of a sweep, or of a compression study
            continue
        record = read_runs(path)
        for run in record["runs"]:
            report = {"recipe": "paper"} | run["report"]
            report["dataset"] = dataset_of(run, f"{path.stem} {record['note']}")
            yield run | {"file": path.stem, "report": report, "method": method(run)}


def dataset_of(run: dict, text: str = "") -> str:
    """Return a run's data set; for an imagefolder, the data set that the run's name or a further text names."""
    dataset = run.get("dataset") or run["report"]["dataset"]
    if dataset != "imagefolder":
        return dataset
    text = f"{run['run']} {text}".lower().replace("-", "")
    named = [name for name in DATASETS if name != "imagefolder" and name in text]
    return max(named, key=len, default="imagefolder")  # the longer name: cifar100, not cifar10


def method(run: dict) -> str:
    """Return the name of a run's setting: `Conv`, `-L`, `-Lr`, `-LRr` as in the paper; other settings by their values.

    Other names are, for example, `Conv, width 0.75`, `rank 0.5 P`, `rank 4`, `sparse 0.25`, `-Lr, alpha 0.25`, and
    `-Lr, regulariser 0.1` or `-Lr, --no-amp` if the sweep has varied more than the variant.
    """
    report, setting = run["report"], run["setting"]
    kind, rank, weight = report["type"], report["rank"], report["reg_weight"]
    names = {
        "dense": "Conv",
        "rank": ("-Lr" if weight else "-L") if rank == 1 else f"rank {rank} P",
        "lowrank": "-LRr" if rank == 10 and weight else f"rank {rank}",
        "sparse": f"sparse {report['sparsity']}",
        **OTHERS,
    }
    parts = [names.get(kind, kind)]
    if report["alpha"] != 0.5 and kind != "dense":
        parts.append(f"alpha {report['alpha']:g}")
    if report["width"] != 1:
        parts.append(f"width {report['width']:g}")
    if kind in LINEARCONV_TYPES:
        if not weight and parts[0] != "-L":
            parts.append("no regulariser")
        if "--reg-weight" in setting and weight not in (0, PAPER_WEIGHT):
            parts.append(f"regulariser {weight:g}")
    if others := REPORTED.sub("", setting).strip():
        parts.append(others)
    return ", ".join(parts)


def comparable(runs: Iterable[dict]) -> dict[tuple, list[dict]]:
    """Return the runs of :func:`every_run` in comparable groups, by the values of `CONDITIONS`."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run["report"][key] for key in CONDITIONS), []).append(run)
    return groups


def by_method(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """Return runs by method, one per seed: a method's second run with the same seed, from another file, is dropped."""
    methods = {}
    for run in runs:
        methods.setdefault(run["method"], {}).setdefault(run["report"]["seed"], run)
    return {name: list(seeds.values()) for name, seeds in methods.items()}


def describe(conditions: tuple, settings: Iterable[Sequence[dict]]) -> str:
    """Return the description of a group: `Base, CIFAR-10, the paper's recipe, 250 epochs, 1 seed`."""
    network, dataset, recipe, epochs = conditions
    counts = [len(runs) for runs in settings]
    least, most = min(counts), max(counts)
    seeds = f"{most} seed" if least == most else f"{least} to {most} seed"
    whose = "the paper's recipe" if recipe == "paper" else f"{recipe} recipe"
    plural = "s" if most > 1 else ""
    return f"{network}, {TITLES.get(dataset, dataset)}, {whose}, {epochs} epochs, {seeds}{plural}"


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (divided by n - 1), which is None for a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_over_seeds(runs: Iterable[dict], key: str = "test_accuracy") -> tuple[float, float | None]:
    """Return :func:`mean_and_deviation` of a number in the reports of runs."""
    return mean_and_deviation(run["report"][key] for run in runs)
