"""The figure of the ablations: accuracy over the share of primary filters, rank, regulariser and sparsity.

    python -m experiments.figures ablations      # from results/ablation_{alpha,rank,reg,sparsity}.json

Each measured ablation has a panel with its values side by side. The dashed line is the dense network under the same
conditions.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.style import dense_line, look, make
from experiments.results import NoResults, comparable, describe, every_run, mean_over_seeds

ABLATIONS = {  # name: the key that varies in the reports, title of the axis
    "alpha": ("alpha", r"$\alpha$, the share of primary filters"),
    "rank": ("rank", "rank of $A$: constant, or a share of the $P$ primary filters"),
    "reg": ("reg_weight", "weight of the regulariser"),
    "sparsity": ("sparsity", "share of $A$ that is pruned"),
}
NAMES = {"rank": ("-Lr", "full rank"), "lowrank": ("-LRr", "rank 10"), "sparse": ("sparse", "sparse")}  # look, name
NAMES_OF_RANKS = {"rank": "a share", "lowrank": "constant"}


def draw(results: Path) -> Figure:
    """Return the figure of all ablations in a folder."""
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
        settings = _panel(axes, name, runs)
        if dense[conditions]:
            mean = mean_over_seeds(dense[conditions])[0]
            dense_line(axes, mean, label=f"dense, {mean:.2f}")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2)
        titles.append(describe(conditions, settings))
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.suptitle("\n".join(dict.fromkeys(titles)), x=0.01, ha="left", fontsize=10.5)
    return figure


def _panel(axes: Axes, name: str, runs: list[dict]) -> list[list[dict]]:
    """Draw one ablation; return the runs of each setting."""
    key, title = ABLATIONS[name]
    settings = {}  # runs by type and value
    for run in runs:
        if run["report"]["type"] != "dense":
            settings.setdefault((run["report"]["type"], run["report"].get(key)), []).append(run)
    # Ranks of both types are side by side; any other value has one position for all types.
    places = sorted({(kind if name == "rank" else "", value) for kind, value in settings})
    texts = [f"{value:g} $P$" if kind == "rank" else f"{value:g}" for kind, value in places]
    axes.set_xticks(range(len(places)), texts, rotation=45 if len(places) > 8 else 0)
    for kind in dict.fromkeys(kind for kind, _ in settings):
        line = {}
        for (type, value), same in sorted(settings.items()):
            if type == kind:
                line[places.index((kind if name == "rank" else "", value))] = same
        means, deviations = zip(*map(mean_over_seeds, line.values()), strict=True)
        like, label = NAMES[kind]
        label = NAMES_OF_RANKS[kind] if name == "rank" else label
        axes.errorbar(list(line), means, [each or 0 for each in deviations], capsize=3, label=label, **look(like))
    axes.set(xlabel=title, ylabel="test accuracy, %", xlim=(-0.5, len(places) - 0.5))
    return list(settings.values())
