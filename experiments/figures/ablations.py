"""The figure of the ablations: accuracy over the share of primary filters, rank, regulariser and sparsity.

    python -m experiments.figures ablations      # from results/ablation_{alpha,rank,reg,sparsity}.json

Each measured ablation has a panel with its values side by side, and with their parameters if there is room. The dashed
line is the dense network under the same conditions. The panel of the regulariser also shows the correlation between
primary filters after training, if recorded.
"""

from fractions import Fraction
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.style import DASHED, FAINT, INK, fill, look, make
from experiments.results import NoResults, comparable, describe, every_run, mean_and_deviation, mean_over_seeds

ABLATIONS = {  # name: the key that varies in the reports, title of the axis
    "alpha": ("alpha", r"$\alpha$, the share of primary filters"),
    "rank": ("rank", "rank of $A$: constant, or a share of the $P$ primary filters"),
    "reg": ("reg_weight", "weight of the regulariser"),
    "sparsity": ("sparsity", "share of $A$ that is pruned"),
}
NAMES = {"rank": "full rank", "lowrank": "rank 10", "sparse": "sparse"}  # names of the lines, by type
NAMES_OF_RANKS = {"rank": "a share", "lowrank": "constant"}
MOST_WITH_PARAMETERS = 8  # values on an axis
LOOKS = {"rank": look("-Lr"), "lowrank": look("-LRr"), "sparse": look("sparse")}


def draw(results: Path) -> Figure:
    """Return the figure of all ablations in a folder.

    Raises:
        NoResults: if the folder has no ablation.
    """
    groups, dense = {}, {}
    for name in ABLATIONS:
        found = comparable(every_run(results, f"ablation_{name}"))
        if found:
            conditions, runs = groups[name] = max(found.items(), key=lambda item: len(item[1]))
            dense.setdefault(conditions, []).extend(run for run in runs if run["report"]["type"] == "dense")
    if not groups:
        raise NoResults(f"there is no {', '.join(f'ablation_{name}.json' for name in ABLATIONS)}")
    rows = (len(groups) + 1) // 2
    figure = make(0.3 + 3.2 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    titles = []
    for axes, (name, (conditions, runs)) in zip(panels, groups.items(), strict=False):
        title = describe(conditions, _panel(axes, name, runs, dense[conditions]))
        if title not in titles:
            titles.append(title)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.suptitle("\n".join(titles), x=0.01, ha="left", fontsize=10.5)
    return figure


def _panel(axes: Axes, name: str, runs: list[dict], dense: list[dict]) -> list[list[dict]]:
    """Draw one ablation; return the runs of each setting."""
    key, title = ABLATIONS[name]
    settings = {}  # runs by type and value
    for run in runs:
        report = run["report"]
        if report["type"] != "dense":
            settings.setdefault((report["type"], report.get(key)), []).append(run)
    settings = dict(sorted(settings.items()))
    # Ranks of both types are side by side; any other value has one position for all types.
    values = sorted({(kind if name == "rank" else "", value) for kind, value in settings})
    place_of = {(kind, value): values.index((kind if name == "rank" else "", value)) for kind, value in settings}
    texts = [_share_of_filters(value) if kind == "rank" else f"{value:g}" for kind, value in values]
    axes.set_xticks(range(len(values)), _with_parameters(texts, settings))
    handles, heights = [], []
    if dense:
        heights = [mean_over_seeds(dense)[0]]
        handles = [axes.axhline(*heights, color=INK, linestyle=DASHED, linewidth=1.2)]
        handles[0].set_label(f"dense, {heights[0]:.2f}")
    for kind in dict.fromkeys(kind for kind, _ in settings):
        line = {place_of[setting]: same for setting, same in settings.items() if setting[0] == kind}
        means = [mean_over_seeds(same)[0] for same in line.values()]
        spreads = [mean_over_seeds(same)[1] or 0 for same in line.values()]
        style = LOOKS[kind].line() | LOOKS[kind].dot()
        axes.errorbar(list(line), means, spreads, capsize=3, elinewidth=1, **style)
        handles.append(Line2D([], [], label=(NAMES_OF_RANKS if name == "rank" else NAMES)[kind], **style))
        for mean, spread in zip(means, spreads, strict=True):
            heights += [mean - spread, mean + spread]
        if name == "reg":
            handles += _correlation(axes, line, LOOKS[kind].marker)
    fill(axes, heights, margin=0.12)
    axes.set(xlabel=title, ylabel="test accuracy, %", xlim=(-0.5, len(values) - 0.5))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2)
    return [*settings.values(), *([dense] if dense else [])]


def _share_of_filters(value: float) -> str:
    """Return a share as a fraction of P, such as P/4."""
    numerator, denominator = Fraction(value).limit_denominator(1000).as_integer_ratio()
    return f"{numerator if numerator > 1 else ''}$P$" + (f"/{denominator}" if denominator > 1 else "")


def _with_parameters(texts: list[str], settings: dict[tuple, list[dict]]) -> list[str]:
    """Return the texts of the values, with the unpruned parameters below if these differ and there is room."""
    counts = [mean_over_seeds(runs, "nonzero_parameters")[0] / 1e3 for runs in settings.values()]
    if len(texts) > MOST_WITH_PARAMETERS or len(counts) > len(texts) or max(counts) - min(counts) < 1:
        return texts
    return [f"{text}\n{count:,.0f} k" for text, count in zip(texts, counts, strict=True)]


def _correlation(axes: Axes, line: dict[int, list[dict]], marker: str) -> list[Line2D]:
    """Draw the correlation after the last epoch on the right axis, if recorded."""
    means = {}
    for place, runs in line.items():
        found = [run["log"][-1].get("correlation") for run in runs]
        if None not in found:
            means[place] = mean_and_deviation(found)[0]
    if not means:
        return []
    beside = axes.twinx()
    how = {"color": FAINT, "linestyle": (0, (1, 1)), "marker": marker, "markerfacecolor": "white"}
    beside.plot(list(means), list(means.values()), **how)
    beside.spines["right"].set_visible(True)
    beside.set_ylabel("mean |correlation|")
    beside.set_ylim(0, 1.3 * max(means.values()))  # above the accuracies
    beside.grid(False)
    return [Line2D([], [], label="correlation, right axis", **how)]
