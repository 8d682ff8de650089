"""The accuracies of Table 2: from the sweeps in results/ on CIFAR-10, and the paper's on three data sets.

The rows of a network come from comparable runs, with the same recipe and number of epochs: the group with most rows.
"""

from collections.abc import Iterable

from experiments.markdown import markdown_table
from experiments.results import OTHERS, by_method, comparable, describe, mean_over_seeds
from experiments.table2.counts import Row, table

METHODS = {"dense": "Conv", "rank": "-Lr", "lowrank": "-LRr"} | OTHERS  # names of settings in results.py
REMARKS = (
    "The paper's accuracies of the plain networks, and the differences to them of the others; * as reported by the "
    "method's authors. In its ImageNet column SqueezeNet's 71.4 cannot be top-1 accuracy on all of ImageNet, where "
    "public weights reach 58.1; VGG11's 70.2 agrees with public ones with BatchNorm, 70.4. The parameters that it "
    "prints are those for 10 classes."
)


def measured(runs: Iterable[dict]) -> dict[str, tuple[tuple, dict[str, list[dict]]]]:
    """Return the measured rows.

    Returns:
        By the network's name: the conditions that its runs have in common, and the runs of each row, one per seed.
        Networks without runs are omitted.
    """
    found = {}
    for conditions, group in comparable(run for run in runs if run["report"]["dataset"] == "cifar10").items():
        network, *_, epochs = conditions
        methods = by_method(group)
        here = {}
        for row in table():
            if row.network.__name__ == network and _method(row) in methods:
                here[row.name] = methods[_method(row)]
        best = found.get(network)
        if here and (best is None or (len(here), epochs) > (len(best[1]), best[0][-1])):
            found[network] = conditions, here
    return found


def _method(row: Row) -> str:
    return METHODS[row.variant.type] + (f", width {row.width:g}" if row.width != 1 else "")


def markdown(runs: Iterable[dict]) -> list[str]:
    """Return the lines of the table, with remarks below; the runs are those of :func:`every_run`."""
    found = measured(runs)
    rows, plain = [], {}
    for row in table():
        _, here = found.get(row.network.__name__, (None, {}))
        accuracy, against = "not measured", ""
        if row.name in here:
            mean, deviation = mean_over_seeds(here[row.name])
            accuracy = f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            if row.is_plain:  # the first row of its network
                plain[row.network] = mean
            elif row.network in plain:
                against = f"{mean - plain[row.network]:+.2f}"
        digits, mark = ".1f" if row.is_plain else "+.1f", "*" if row.as_reported else ""
        printed = [format(value, digits) + mark for value in row.accuracy] or ["-"] * 3
        rows.append([row.name, accuracy, against, *printed])
    remarks = [f"{describe(conditions, here.values())}." for conditions, here in found.values()]
    remarks = remarks or ["No sweep in results/ has runs of these networks."]
    lines = markdown_table(["network", "CIFAR-10, %", "against plain", "paper, CIFAR-10", "SVHN", "ImageNet"], rows)
    return [*lines, "", *(f"{line}  " for line in ("Test accuracy after the last epoch:", *remarks, REMARKS))]
