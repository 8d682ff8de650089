"""The accuracies of Table 2: those of the sweeps in results/ on CIFAR-10, beside the paper's on three data sets.

A network's rows are taken from runs that compare, of one recipe and number of epochs: from those that have most rows.
"""

from collections.abc import Iterable

from experiments.results import OTHERS, by_method, comparable, describe, mean_over_seeds
from experiments.table2.counts import Row, table

DATASET = "cifar10"
METHODS = {"dense": "Conv", "rank": "-Lr", "lowrank": "-LRr"} | OTHERS  # as results.py calls the rows' settings
MISSING = "not measured"
REMARKS = (
    "The paper's accuracies of the plain networks, and the differences to them of the others; * as reported by the "
    "method's authors. In its ImageNet column SqueezeNet's 71.4 cannot be top-1 accuracy on all of ImageNet, where "
    "public weights reach 58.1; VGG11's 70.2 agrees with public ones with BatchNorm, 70.4. The parameters that it "
    "prints are those for 10 classes."
)


def measured(runs: Iterable[dict]) -> dict[str, tuple[tuple, dict[str, list[dict]]]]:
    """Return what has been measured of each network.

    Args:
        runs: of :func:`experiments.results.every_run`.

    Returns:
        By the network's name: the conditions that its runs have in common, and the runs of each row, one per seed.
        Networks without runs are left out.
    """
    best = {}
    groups = comparable(run for run in runs if run["report"]["dataset"] == DATASET)
    for conditions, group in groups.items():
        methods = by_method(group)
        network, *_, epochs = conditions
        here = {row.name: methods[_method(row)] for row in _rows_of(network) if _method(row) in methods}
        if here and (len(here), epochs) > best.get(network, ((0, 0),))[0]:
            best[network] = (len(here), epochs), conditions, here
    return {network: (conditions, here) for network, (_, conditions, here) in best.items()}


def _rows_of(network):
    return [row for row in table() if row.network.__name__ == network]


def _method(row: Row) -> str:
    return METHODS[row.variant.type] + (f", width {row.width:g}" if row.width != 1 else "")


def markdown(runs: Iterable[dict]) -> list[str]:
    """Return the table's lines: what was measured, its difference to the plain network's, the paper's; remarks below.

    Args:
        runs: of :func:`experiments.results.every_run`.
    """
    found = measured(runs)
    lines = ["| network | CIFAR-10, % | against plain | paper, CIFAR-10 | SVHN | ImageNet |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in table():
        _, here = found.get(row.network.__name__, (None, {}))
        lines.append(f"| {row.name} | {' | '.join([*_ours(row, here), *_papers(row)])} |")
    said = [f"{describe(conditions, here.values())}." for conditions, here in found.values()]
    said = said or ["No sweep in results/ has runs of these networks."]
    return [*lines, "", *(f"{line}  " for line in ("Test accuracy after the last epoch:", *said, REMARKS))]


def _ours(row, here):
    """Two cells: mean and deviation over seeds, and the mean less that of the plain network."""
    if row.name not in here:
        return MISSING, ""
    mean, deviation = mean_over_seeds(here[row.name])
    shown = f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    plain = next(other.name for other in table() if other.is_plain and other.network is row.network)
    against = f"{mean - mean_over_seeds(here[plain])[0]:+.2f}" if plain in here and not row.is_plain else ""
    return shown, against


def _papers(row):
    """Three cells, `-` for what is not in the paper."""
    digits, mark = ".1f" if row.is_plain else "+.1f", "*" if row.as_reported else ""
    return [format(value, digits) + mark for value in row.accuracy] or ["-"] * 3
