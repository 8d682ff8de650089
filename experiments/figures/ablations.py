"""The figure of the ablations: accuracy over the share of primary filters, rank, regulariser and sparsity.

    python -m experiments.figures ablations      # from results/ablation_{alpha,rank,reg,sparsity}.json

A panel each of those that are there: the values that were measured stand side by side, with the number of parameters
that they leave, where there is room; the dashed line is the dense network, measured with one of them or another under
the same conditions. Beside the regulariser stands the correlation that is left between primary filters, where the runs
have recorded it.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.style import DASHED, FAINT, INK, fill, look, make
from experiments.results import NoResults, comparable, describe, every_run, mean_and_deviation, mean_over_seeds

ABLATIONS = {  # name: what varies in the reports, title of the axis
    "alpha": ("alpha", r"$\alpha$, the share of primary filters"),
    "rank": ("rank", "rank of $A$: constant, or a share of the $P$ primary filters"),
    "reg": ("reg_weight", "weight of the regulariser"),
    "sparsity": ("sparsity", "share of $A$ that is pruned"),
}
NAMES = {"rank": "full rank", "lowrank": "rank 10", "sparse": "sparse"}  # of the lines, by type
NAMES_OF_RANKS = {"rank": "a share", "lowrank": "constant"}
MOST_WITH_PARAMETERS = 8  # values on an axis
LOOKS = {"rank": look("-Lr"), "lowrank": look("-LRr"), "sparse": look("sparse")}


def draw(results: Path) -> Figure:
    """Return the figure of all ablations in a folder.

    Raises:
        NoResults: where there is none.
    """
    groups = {name: comparable(every_run(results, f"ablation_{name}")) for name in ABLATIONS}
    groups = {name: max(found.items(), key=lambda item: len(item[1])) for name, found in groups.items() if found}
    if not groups:
        raise NoResults(f"there is no {', '.join(f'ablation_{name}.json' for name in ABLATIONS)}")
    rows = (len(groups) + 1) // 2
    figure = make(0.3 + 3.2 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    dense, told = {}, {}
    for conditions, runs in groups.values():
        dense.setdefault(conditions, []).extend(run for run in runs if run["report"]["type"] == "dense")
    for axes, (name, (conditions, runs)) in zip(panels, groups.items(), strict=False):
        told[describe(conditions, _panel(axes, name, runs, dense[conditions]))] = None
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.suptitle("\n".join(told), x=0.01, ha="left", fontsize=10.5)
    return figure


def _panel(axes: Axes, name: str, runs: Iterable[dict], dense: list[dict]) -> list[list[dict]]:
    """Draw one ablation; return the runs of each setting."""
    key, title = ABLATIONS[name]
    series = {}
    for run in runs:
        report = run["report"]
        series.setdefault(report["type"], {}).setdefault(report.get(key), []).append(run)
    series.pop("dense", None)
    series = dict(sorted(series.items()))
    settings = {(kind if name == "rank" else "", value) for kind, line in series.items() for value in line}
    places = {setting: place for place, setting in enumerate(sorted(settings))}
    texts = [_share_of_filters(value) if kind == "rank" else f"{value:g}" for kind, value in places]
    axes.set_xticks(range(len(places)), _with_parameters(texts, series))
    handles, heights = [], []
    if dense:
        heights = [mean_over_seeds(dense)[0]]
        handles = [axes.axhline(*heights, color=INK, linestyle=DASHED, linewidth=1.2)]
        handles[0].set_label(f"dense, {heights[0]:.2f}")
    for kind, line in series.items():
        line = {places[kind if name == "rank" else "", value]: same for value, same in sorted(line.items())}
        means, spreads = zip(*map(mean_over_seeds, line.values()), strict=True)
        spreads = [spread or 0 for spread in spreads]
        style = LOOKS[kind].line() | LOOKS[kind].dot()
        axes.errorbar(list(line), means, spreads, capsize=3, elinewidth=1, **style)
        label = (NAMES_OF_RANKS if name == "rank" else NAMES)[kind]
        handles.append(Line2D([], [], label=label, **style))
        heights += [mean + sign * spread for mean, spread in zip(means, spreads, strict=True) for sign in (-1, 1)]
        if name == "reg":
            handles += _correlation(axes, line, LOOKS[kind].marker)
    fill(axes, heights, margin=0.12)
    axes.set(xlabel=title, ylabel="test accuracy, %", xlim=(-0.5, len(places) - 0.5))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2)
    return [same for line in (*series.values(), {None: dense} if dense else {}) for same in line.values()]


def _share_of_filters(value: float) -> str:
    """A share as a fraction of P: P/4."""
    numerator, denominator = Fraction(value).limit_denominator(1000).as_integer_ratio()
    return f"{numerator if numerator > 1 else ''}$P$" + (f"/{denominator}" if denominator > 1 else "")


def _with_parameters(texts: list[str], series: dict[str, dict[float, list[dict]]]) -> list[str]:
    """Texts of the values, sorted, below each the parameters that are not pruned, where they differ and are one's, and
    have room."""
    counts = [
        mean_over_seeds(runs, "nonzero_parameters")[0] / 1e3
        for line in series.values()
        for _, runs in sorted(line.items())
    ]
    if len(texts) > MOST_WITH_PARAMETERS or len(counts) > len(texts) or max(counts) - min(counts) < 1:
        return texts
    return [f"{text}\n{count:,.0f} k" for text, count in zip(texts, counts, strict=True)]


def _correlation(axes: Axes, line: dict[int, list[dict]], marker: str) -> list[Line2D]:
    """Draw the correlation that is left after the last epoch on the right axis; nothing where it was not recorded."""
    left = {place: [run["log"][-1].get("correlation") for run in runs] for place, runs in line.items()}
    left = {place: mean_and_deviation(found)[0] for place, found in left.items() if None not in found}
    if not left:
        return []
    beside = axes.twinx()
    how = {"color": FAINT, "linestyle": (0, (1, 1)), "marker": marker, "markerfacecolor": "white"}
    beside.plot(list(left), list(left.values()), **how)
    beside.spines["right"].set_visible(True)
    beside.set_ylabel("mean |correlation|")
    beside.set_ylim(0, 1.3 * max(left.values()))  # not where the accuracies begin, on which it would lie
    beside.grid(False)
    return [Line2D([], [], label="correlation, right axis", **how)]
