"""The plot of a sweep: each series has a look of its own, and the measured range fills the axes."""

import itertools

import pytest

pytest.importorskip("matplotlib")

from experiments.sweep import plot as sweep_plot

DENSE, TWICE, LOW = ("dense", None, ""), ("rank", 1.0, "--lr 0.1"), ("lowrank", 4, "")


def runs_of(*settings, network="Base", flops=2e6):
    """Runs of two seeds, each setting a tenth of a per cent better than the one before; the last has these FLOPs."""
    runs = []
    for (index, (kind, rank, varied)), seed in itertools.product(enumerate(settings), (0, 1)):
        report = {"architecture": network, "dataset": "cifar10", "type": kind, "rank": rank, "sparsity": None}
        report |= {"alpha": 0.5, "parameters": 1000, "nonzero_parameters": 1000 - index, "macs_inference": 10 + index}
        report["flops_paper"] = flops if index == len(settings) - 1 else 1e6 + index
        report |= {"test_accuracy": 80 + index / 10 + seed / 100, "best_test_accuracy": 82, "best_epoch": 1}
        report["epochs"] = 3
        runs.append({"setting": f"-t {kind} -r {rank} {varied}", "varied": varied, "report": report, "log": []})
    return runs


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draw runs; returns the axes in place of a file, a row for each network: three plots and the legend."""
    figures = []
    monkeypatch.setattr(sweep_plot, "save", lambda figure, *_: figures.append(figure))

    def draw(runs):
        sweep_plot.plot(runs, tmp_path / "plot.png")
        axes = figures[-1].axes
        return [axes[start : start + 4] for start in range(0, len(axes), 4)]

    return draw


def legend(beside):
    return [text.get_text() for text in beside.get_legend().get_texts()]


def test_varied_options_are_a_series_of_their_own_and_no_two_look_alike(draw):
    settings = DENSE, TWICE, ("rank", 1.0, "--lr 0.2 --init spectral"), LOW, ("lowrank", 9, "")
    ((*plots, beside),) = draw(runs_of(*settings))
    assert legend(beside) == ["dense", "rank, lr 0.1", "rank, lr 0.2, init spectral", "lowrank"]
    for axes in plots:
        lines = [container.lines[0] for container in axes.containers]
        assert [len(line.get_xdata()) for line in lines] == [1, 1, 1, 2]
        assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 4
        assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "4", "9"]


def test_the_measured_range_fills_the_axes_and_counts_far_apart_are_logarithmic(draw):
    ((*plots, _),) = draw(runs_of(DENSE, TWICE, LOW, flops=2e9))
    for axes in plots:
        low, high = axes.get_ylim()
        assert low <= 80 < 80.21 <= high < low + 0.3
    assert [axes.get_xscale() for axes in plots] == ["linear", "log", "linear"]


def test_each_network_has_plots_of_its_own_and_more_series_than_looks_are_drawn(draw):
    many = [("rank", 1.0, f"--lr {number}") for number in range(1, 14)]
    base, vgg = draw(runs_of(*many) + runs_of(DENSE, network="VGG11"))
    assert [row[0].get_title(loc="left").partition(",")[0] for row in (base, vgg)] == ["Base", "VGG11"]
    assert [len(legend(row[3])) for row in (base, vgg)] == [13, 1]
