"""The accuracies of Table 1: our runs next to the paper's figures.

Further rows show the value of a saving, next to the paper's rows (dense, Lr, LRr): L, which is Lr without the
regulariser; other settings of LinearConv; and thinner dense networks with the cost of Lr.
"""

from collections.abc import Sequence
from functools import cache

from dataloaders import DATASETS, describe
from experiments import paper
from experiments.results import dataset_of
from experiments.sweep.plan import shortest
from experiments.sweep.table import summarise, table
from experiments.thinner import macs_of, width_for
from linearconv import LinearConv
from training.counting import count_parameters

ROWS = {  # options of the scripts
    "dense": "-t dense",
    "L": "-t rank -r 1 --reg-weight 0",
    "Lr": "-t rank -r 1",
    "LRr": "-t lowrank -r 10",
    "half-rank": "-t rank -r 0.5",
    "sparse": "-t sparse -s 0.25",
    "thinner-parameters": "-t dense --width {}",  # with the parameters of Lr
    "thinner-macs": "-t dense --width {}",  # with the multiply-adds at inference of Lr
}
COLUMNS = {
    "row": "network",
    "dataset": "data",
    "parameters": "parameters",
    "macs_inference": "multiply-adds at inference",
    "accuracy": "test accuracy",
    "best": "best (epoch)",
    "against_dense": "against dense",
    "paper": "paper",
    "paper_against": "paper, against dense",
    "less_paper": "ours less the paper's",
    "against_less_paper": "the same, against dense",
    "seeds": "seeds",
}


def setting(name: str, row: str, dataset: str, num_classes: int = 10) -> str:
    """Return the options with which a script trains a row of the table.

    Args:
        name: name of the network, from `NETWORKS`.
        row: name of the row, from `ROWS`.
        dataset: data set, which decides the input channels and classes of a thinner network.
        num_classes: classes of a data set that `dataloaders` does not know by name; its images have three channels.
    """
    in_channels = 3
    if "{}" not in ROWS[row]:
        return ROWS[row]
    if dataset in DATASETS and dataset != "imagefolder":
        info = describe(dataset)
        in_channels, num_classes = info.in_channels, info.num_classes
    return ROWS[row].format(shortest(_thinner(name, row, in_channels, num_classes)))


@cache
def _thinner(name, row, in_channels, num_classes):
    shape = {"in_channels": in_channels, "num_classes": num_classes}
    network = paper.NETWORKS[name]
    count = count_parameters if row == "thinner-parameters" else macs_of(in_channels)
    return width_for(network, count(network(conv=LinearConv, **shape)), count, **shape)


def compare(runs: Sequence[dict], names: Sequence[str] = (), rows: Sequence[str] = ()) -> list[dict]:
    """Return the measured rows of the table, by data set, network and row.

    Returns:
        The rows of :func:`experiments.sweep.table.summarise` with the values of `COLUMNS`, None for values that the
        paper lacks. Differences are in points, ours minus the paper's, for accuracies and for differences to dense.
    """
    classes = {dataset_of(run): run["report"]["num_classes"] for run in runs}
    measured = {(row["dataset"], row["network"], row["setting"]): row for row in summarise(runs)}
    networks = {(dataset, network) for dataset, network, _ in measured}
    found = []
    for dataset in dict.fromkeys(dataset for dataset, *_ in measured):
        for name in names or paper.NETWORKS:
            architecture = paper.NETWORKS[name].__name__
            if (dataset, architecture) not in networks:  # widths of thinner networks take time to find
                continue
            for row in rows or ROWS:
                ours = measured.get((dataset, architecture, setting(name, row, dataset, classes[dataset])))
                if ours:
                    found.append(ours | _against_paper(name, row, ours, paper.accuracies(name, dataset)))
    return found


def _against_paper(name, row, ours, printed):
    """Return a row's name, the paper's figures, and the differences to these."""
    values = dict.fromkeys(("paper", "paper_against", "less_paper", "against_less_paper"))
    values["row"] = f"{name}-{row}"
    theirs = printed.get(f"-{row}")
    if row == "dense":
        values |= {"row": name, "against_dense": None}
        theirs = printed.get("Conv")
    if theirs is None:
        return values
    values |= {"paper": f"{theirs:.1f} %", "less_paper": ours["accuracy"][0] - theirs}
    if row != "dense":
        difference = theirs - printed["Conv"]
        values["paper_against"] = f"{difference:+.1f}"
        if ours["against_dense"] is not None:
            values["against_less_paper"] = ours["against_dense"] - difference
    return values


def markdown(runs: Sequence[dict], names: Sequence[str] = (), rows: Sequence[str] = ()) -> list[str]:
    """Return the lines of the tables of :func:`compare`, one for each recipe and number of epochs."""
    groups, lines = {}, []
    for run in runs:
        groups.setdefault((run["report"]["recipe"], run["report"]["epochs"]), []).append(run)
    for (recipe, epochs), same in groups.items():
        lines += [*table(compare(same, names, rows), COLUMNS), ""]
        lines.append(f"Ours: {recipe} recipe, after {epochs} epochs; ± is the sample standard deviation over seeds.")
    return lines
