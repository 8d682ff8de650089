"""The study of learning rates after conversion: every way and rate from the same start, watched at its first steps."""

import json

import pytest

from experiments import tuning
from training.report import ROOT


def test_a_study_watches_the_first_steps_of_every_way_and_rate(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    own = [
        f"{ROOT}/models/base_xcnn.py:Base",
        "--name",
        "try",
        "--epochs",
        "2",
        "--tune",
        "3",
        "--rates",
        "1e-9",
        "0.1",
    ]
    training = ["--dataset", "imagefolder", "--data-root", str(data), "--batch-size", "9", "--width", "0.125"]
    assert tuning.main([*own, "--", *training, "--device", "cpu", "--no-amp"]) == 0
    record = json.loads((tmp_path / "results" / "try.json").read_text())
    assert [(row["way"], row["lr"]) for row in record["rows"]] == [
        (way, lr) for way in tuning.WAYS for lr in (1e-9, 0.1)
    ]
    assert all(len(row["points"]) == 3 for row in record["rows"])  # after steps 1 and 10 of 12, and at the end
    first = {(row["way"], row["lr"]): row["points"][0][0] for row in record["rows"]}
    low = [first[way, 1e-9] for way in tuning.WAYS]
    assert low == pytest.approx([low[0]] * len(low), rel=1e-4)  # from one start, on the same images
    assert abs(first["Adam, constant", 0.1] - low[0]) > 0.1
    out = capsys.readouterr().out
    assert tuning.main(["--name", "try", "--table"]) == 0
    assert capsys.readouterr().out in out


@pytest.mark.parametrize(
    "words, told",
    (
        ("--name none --table", "none.json"),
        ("models/base_xcnn.py --name none", "models/FILE.py:NAME"),
        ("models/base_xcnn.py:Base --name none", "--dataset"),
        ("models/base_xcnn.py:Base --name none --rates 0", "--rates"),
    ),
)
def test_bad_input_is_refused_in_one_line(words, told, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    try:
        code = tuning.main(words.split())
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and told in lines[0]
