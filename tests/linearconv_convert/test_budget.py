"""Budgets are kept, met with the least that can be lost, and better spent than by the same share for every layer."""

import itertools

import pytest
import torch
import torch.nn as nn

from linearconv import LinearConv
from linearconv_convert import ConversionError, convert
from linearconv_convert.budget import Option, curve_of, share_out
from linearconv_convert.losses import alpha_of
from linearconv_lowrank import LinearConvLowRank
from tests.helpers.layers import relative_error
from tests.helpers.networks import images, tiny
from training.counting import count_parameters, macs_inference


def structured():
    """A thin layer, a wide one whose filters are of rank 8, a wide one of a flat spectrum."""
    torch.manual_seed(0)
    wide = nn.Conv2d(32, 64, 3)
    filters = torch.randn(64, 8) @ torch.randn(8, 32 * 9) / 50
    wide.weight.data.copy_(filters.view_as(wide.weight))
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), wide, nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]).eval()


def test_sharing_out_is_as_good_as_trying_everything_but_for_one_step():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 100, (4, 6), generator=generator).tolist()
    losses = torch.rand(4, 6, generator=generator).tolist()
    options = {
        str(layer): [Option({}, 120), *(Option({"rank": 1}, *pair) for pair in zip(*pairs, strict=True))]
        for layer, pairs in enumerate(zip(sizes, losses, strict=True))
    }
    everything = [
        (sum(o.size for o in each), sum(o.loss for o in each)) for each in itertools.product(*options.values())
    ]
    hull = curve_of(options)
    for budget in range(min(size for size, _ in everything), 481, 7):
        chosen = share_out(options, budget).values()
        assert sum(option.size for option in chosen) <= budget
        loss = sum(option.loss for option in chosen)
        best = min(loss for size, loss in everything if size <= budget)
        assert best <= loss + 1e-9 and loss <= max(each for size, each in hull if size <= budget) + 1e-9
    for size, loss in hull:  # at its corners the hull is the optimum itself
        assert loss == pytest.approx(min(each for other, each in everything if other <= size))
        assert sum(option.loss for option in share_out(options, size).values()) == pytest.approx(loss)


@pytest.mark.parametrize("filters", [1, 49, 1023])
def test_every_number_of_primary_filters_can_be_given_through_alpha(filters):
    for primary in range(1, filters + 1):
        assert LinearConv(1, filters, 1, device="meta", alpha=alpha_of(primary, filters)).primary_channels == primary


@pytest.mark.parametrize("kind, of, budget", [("rank", "macs", 0.6), ("lowrank", "parameters", 0.54)])
def test_a_budget_is_kept_and_nearly_spent(kind, of, budget):
    model, calibration = structured(), [images(24, 16), images(20, 16)]
    small, report = convert(model, kind, budget=budget, of=of, calibration=calibration, return_report=True)
    if of == "parameters":
        share = count_parameters(small) / count_parameters(model)
        assert share == report.parameters_after / report.parameters_before
    else:
        share = macs_inference(small, (3, 24, 24)) / macs_inference(model, (3, 24, 24))
        assert share == pytest.approx(report.macs_after / report.macs_before, rel=1e-6)
    assert budget - (0.04 if of == "parameters" else 0.1) < share <= budget
    assert type(small[2]) is type(small[4]) is (LinearConvLowRank if kind == "lowrank" else LinearConv)
    sizes, errors = zip(*report.curve, strict=True)
    assert sorted(sizes) == list(sizes) and sorted(errors, reverse=True) == list(errors)
    assert sizes[-1] == pytest.approx(1) and errors[-1] == pytest.approx(0, abs=1e-6)
    assert 0 <= report.expected <= 1 and "expected" in str(report) and "alpha" in str(report)


class Branches(nn.Module):
    """Two equal convolutions side by side; the second hardly counts."""

    def __init__(self):
        super().__init__()
        self.loud, self.quiet = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 3)
        self.quiet.load_state_dict(self.loud.state_dict())

    def forward(self, x):
        return self.loud(x) + 0.1 * self.quiet(x)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_hardly_changes_the_output_is_cut_down_first_with_progress_on_a_terminal(is_terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    torch.manual_seed(0)
    _, report = convert(Branches(), "rank", budget=0.6, calibration=images(24, 16), return_report=True)
    loud, quiet = (row.parameters_after for row in report.layers)
    assert quiet < 0.6 * loud
    lines = "\rmeasuring layer 1 of 2\rmeasuring layer 2 of 2\n"
    assert capsys.readouterr().err == (lines if is_terminal else "")
    _, blind = convert(Branches(), "rank", budget=0.6, return_report=True)
    assert abs(blind.layers[0].parameters_after - blind.layers[1].parameters_after) < 60


def test_a_budget_is_no_worse_than_the_same_share_for_every_layer():
    model, seen, unseen = structured(), images(24, 32), torch.randn(64, 3, 24, 24)
    uniform, report = convert(model, "rank", alpha=0.25, calibration=seen, return_report=True)
    budget = report.parameters_after / report.parameters_before
    shared = convert(model, "rank", budget=budget, calibration=seen)
    assert count_parameters(shared) <= count_parameters(uniform)
    with torch.no_grad():
        assert relative_error(shared(unseen), model(unseen)) < relative_error(uniform(unseen), model(unseen))


def test_a_budget_follows_the_users_own_metric():
    torch.manual_seed(0)
    model, batch = Branches().eval(), images(24, 16)
    with torch.no_grad():
        expected = model(batch)

    def metric(network):
        error = (network(batch) - expected).square().mean() / expected.square().mean()
        return 80 - 10 * error.item()  # per cent

    _, report = convert(model, "rank", budget=0.6, evaluate=metric, return_report=True)
    loud, quiet = (row.parameters_after for row in report.layers)
    assert quiet < 0.6 * loud and 1e-4 < report.expected < 0.2
    assert torch.equal(model(batch), expected)
    _, report = convert(model, "rank", budget=0.6, evaluate=lambda network: 80.0, return_report=True)
    assert report.expected == pytest.approx(0, abs=1e-9)  # a metric without losses


def test_an_error_gives_each_layer_the_fewest_filters_within_it():
    _, report = convert(structured(), "rank", error=0.2, return_report=True)
    for row in report.converted:
        assert row.filter_error <= 0.2 * 1.003
        fewer = row.variant.alpha - 1.01 / (32 if row.name == "0" else 64)
        _, closer = convert(structured(), "rank", alpha=fewer, include=[row.name], return_report=True)
        assert closer.converted[0].filter_error > 0.2
    assert {row.name for row in report.converted} >= {"2"} and report.curve


def test_alpha_and_rank_are_given_by_name_or_pattern():
    small = convert(tiny(), "lowrank", alpha={"stem": 0.25, "b*": 0.75}, rank={"twice": 2, "*": 3}, grow=True)
    assert small.stem.primary_channels == 4 and small.block[0].primary_channels == 12
    assert small.twice.primary_channels == 12 and small.twice.row_weights.shape[0] == 2
    assert small.stem.row_weights.shape[0] == 3


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(type="rank", budget=0.5, error=0.1), "exclude each other"),
        (dict(type="lowrank", budget=0.5, rank=3), "choose rank: leave it out"),
        (dict(type="sparse", budget=0.5), "nothing else"),
        (dict(type="rank", budget=0.5, of="macs"), "needs example_input or calibration"),
        (dict(type="rank", budget=1.5), "budget must be in"),
        (dict(type="rank", budget=0.5, of="bytes"), "of must be one of"),
        (dict(type="rank", evaluate=len), "evaluate measures the layers for a budget"),
        (dict(type="lowrank"), "lowrank needs a rank"),
        (dict(type="rank", init="random"), "init must be one of"),
        (dict(type="rank", kinds=("conv3d",)), "kinds must be several of conv2d, conv1d, linear"),
        (dict(type="lowrank", rank={"stem": 3}), "rank: no entry fits"),
        (dict(type="rank", alpha={"conv9": 0.5}), "no module of the model is called 'conv9'"),
    ],
)
def test_a_setting_that_is_out_of_range_or_contradicts_another_is_refused_in_one_line(setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(tiny(), **setting)
    assert "\n" not in str(caught.value)


def test_the_smallest_budget_that_is_named_can_be_reached():
    with pytest.raises(ConversionError) as caught:
        convert(tiny(), "rank", budget=0.001)
    smallest = float(str(caught.value).split("size is ")[1].split()[0])
    _, report = convert(tiny(), "rank", budget=smallest, return_report=True)
    assert report.parameters_after / report.parameters_before <= smallest
