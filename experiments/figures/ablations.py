"""The figure of the ablations: accuracy over the share of primary filters, rank, regulariser and sparsity.

Each measured ablation has a panel with its values side by side. The dashed line is the dense network under the same
conditions.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.style import WIDTH, dense_line, look
from experiments.results import NoResults, comparable, describe, every_run, mean_over_seeds

ABLATIONS = {  # name: the key that varies in the reports, title of the axis
    "alpha": ("alpha", r"$\alpha$, the share of primary filters"),
    "rank": ("rank", "rank of $A$: constant, or a share of the $P$ primary filters"),
    "reg": ("reg_weight", "weight of the regulariser"),
    "sparsity": ("sparsity", "share of $A$ that is pruned"),
}
TYPES = {  # look, name, name where the rank varies
    "rank": ("-Lr", "full rank", "a share"),
    "lowrank": ("-LRr", "rank 10", "constant"),
    "sparse": ("sparse", "sparse", ""),
}


def draw(results: Path) -> Figure:
    """Return the figure of all ablations in a folder."""
    groups, dense = {}, {}
    for name in ABLATIONS:
        found = comparable(every_run(results, f"ablation_{name}"))
        if found:
            conditions, methods = max(found.items(), key=lambda item: len(item[1]))
            dense.setdefault(conditions, []).extend(methods.pop("Conv", []))
            groups[name] = conditions, [run for runs in methods.values() for run in runs]
    if not groups:
        raise NoResults(f"there is no {', '.join(f'ablation_{name}.json' for name in ABLATIONS)}")
    rows = (len(groups) + 1) // 2
    figure = Figure((WIDTH, 0.3 + 3.2 * rows))
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    titles = []
    for axes, (name, (conditions, runs)) in zip(panels, groups.items(), strict=False):
        titles.append(describe(conditions, _panel(axes, name, runs)))
        if dense[conditions]:
            mean = mean_over_seeds(dense[conditions])[0]
            dense_line(axes, mean, label=f"dense, {mean:.2f}")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.suptitle("\n".join(dict.fromkeys(titles)), x=0.01, ha="left", fontsize=10.5)
    return figure


def _panel(axes: Axes, name: str, runs: list[dict]) -> list[int]:
    """Draw one ablation; return the number of seeds of each setting."""
    key, title = ABLATIONS[name]
    settings = {}  # runs by place and type; ranks of both types are side by side, other values have one place
    for run in runs:
        kind, value = run["report"]["type"], run["report"][key]
        settings.setdefault(((kind if name == "rank" else "", value), kind), []).append(run)
    places = sorted({place for place, _ in settings})
    texts = [f"{value:g} $P$" if kind == "rank" else f"{value:g}" for kind, value in places]
    axes.set_xticks(range(len(places)), texts, rotation=45 if len(places) > 8 else 0)
    for kind in dict.fromkeys(kind for _, kind in settings):
        line = {places.index(place): same for (place, type), same in sorted(settings.items()) if type == kind}
        means, deviations = zip(*map(mean_over_seeds, line.values()), strict=True)
        method, label, label_of_ranks = TYPES[kind]
        bars = [deviation or 0 for deviation in deviations]
        label = label_of_ranks if name == "rank" else label
        axes.errorbar(list(line), means, bars, capsize=3, label=label, **look(method))
    axes.set(xlabel=title, ylabel="test accuracy, %", xlim=(-0.5, len(places) - 0.5))
    return [len(same) for same in settings.values()]
