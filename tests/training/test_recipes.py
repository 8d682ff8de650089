"""Recipes: the table of options, the learning rate over the epochs, the effect of each option, and resumed runs."""

import json
from dataclasses import dataclass

import pytest
import torch

from linearconv import LinearConv
from linearconv_variants import OneLineParser
from tests.training.test_survival import WHOLE
from training import recipe
from training.errors import UsageError
from training.options import make_parser, parse_arguments
from training.recipe import FAST, TUNE, Recipe, changed_settings, recipe_for
from training.trainer import Trainer


def test_the_learning_rate_rises_and_falls_as_the_schedule_says():
    linear = Recipe(lr=2.0, epochs=10, schedule="linear", warmup=2)
    assert [linear.lr_at(epochs) for epochs in (0, 1, 2, 6, 10)] == [0, 1, 2, 1, 0]
    cosine = Recipe(lr=2.0, epochs=8, schedule="cosine")
    assert [cosine.lr_at(epochs) for epochs in (0, 4, 8)] == pytest.approx([2, 1, 0])
    steps = Recipe(lr=2.0, epochs=8, milestones=(3, 5), warmup=2)
    assert [steps.lr_at(epochs) for epochs in (1, 2.5, 3, 4.9, 5)] == pytest.approx([1, 2, 0.2, 0.2, 0.02])


def test_a_step_has_the_learning_rate_of_its_middle(run, monkeypatch):
    rates, set_rate = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or set_rate(self)
    )
    folder = run("base", "-t dense --width 0.125 --epochs 2 --optimizer sgd --lr 0.8 --schedule linear")
    assert rates == pytest.approx([0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.15, 0.05])  # two epochs of four steps
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["lr"] for record in log] == pytest.approx([0.45, 0.05])


def test_a_recipe_option_is_one_line(monkeypatch):
    @dataclass(frozen=True)
    class Extended(Recipe):
        shake: float = recipe.option(0.25, float, "strength of the shaking", may_change=True)

    monkeypatch.setattr(recipe, "Recipe", Extended)
    parser = OneLineParser()
    recipe.add_recipe_options(parser, starts=("published",), without=("distill",))
    help = parser.format_help()
    assert "strength of the shaking" in help and "--distill" not in help
    given = parser.parse_args(["--shake", "0.5"])
    assert Extended(1.0, 1).changed_by(given).shake == 0.5 and given.lr is None and given.distill is None
    assert Extended(1.0, 1).settings()["shake"] == 0.25


def chosen(options, dataset="cifar10"):
    paper, digits = Recipe(lr=1.0, epochs=10), Recipe(lr=2.0, epochs=2)
    parsed = parse_arguments(make_parser({"Base": None}, paper, digits), ["--device", "cpu", *options.split()])
    return recipe_for(parsed, dataset, paper, digits)


@pytest.mark.parametrize("recipe", [FAST, TUNE])
def test_the_short_recipes_are_for_every_data_set_and_options_change_them(recipe):
    name = "fast" if recipe is FAST else "tune"
    assert chosen(f"--recipe {name}", "digits") == recipe
    assert chosen(f"--recipe {name} --epochs 3").epochs == 3
    assert chosen("").lr == 1.0 and chosen("", "digits").lr == 2.0


@pytest.mark.parametrize(
    "options",
    [
        "-t rank --dense-epochs 10",
        "-t rank --schedule linear --milestones 3",
        "-t rank --warmup 11",
        "-t rank --pruning published",
        "-t rank --decay filters",
        "-t dense --reg-weight 0.1",
        "-t dense --image-size 64",
    ],
)
def test_an_option_without_an_effect_is_refused(options):
    with pytest.raises(UsageError, match=f"{options.split()[-2]} .* has no effect here: it needs"):
        chosen(options)
    chosen("-t dense --reg-weight 0 --dense-epochs 0 --init published")  # switched off
    chosen("-t rank --recipe fast --epochs 1")  # the warm-up of `fast` was not given


def test_the_report_names_the_recipe_and_all_of_its_fields(run):
    report = json.loads((run("base", f"-t rank --width 0.125 --epochs 2 {WHOLE}") / "report.json").read_text())
    assert report["recipe"] == "fast" and report["validation"] == 0
    for name in vars(FAST):
        assert name in report
    assert (report["optimizer"], report["init"], report["decay"]) == ("sgd", "spectral", "filters")


def test_an_option_that_is_missing_in_a_checkpoint_had_its_default(tmp_path):
    assert changed_settings({"clip": 0.0, "seed": 1}, {"seed": 1}, tmp_path) == []
    with pytest.raises(UsageError, match="clip 0.0 there, 0.5 here"):
        changed_settings({"clip": 0.5}, {}, tmp_path)


def test_the_dense_network_goes_first_and_is_converted(trained, monkeypatch):
    kinds, step = [], Trainer._train_step

    def noting(trainer, *batch):
        kinds.append(type(trainer.model.feat[0][0]))
        step(trainer, *batch)

    monkeypatch.setattr(Trainer, "_train_step", noting)
    trainer = trained("base", "-t rank --alpha 1 --width 0.25 --epochs 3 --lr 1e-9 --dense-epochs 2")
    assert kinds == [torch.nn.Conv2d] * 8 + [LinearConv] * 4
    dense = trained("base", "-t dense --width 0.25 --epochs 3 --lr 1e-9")
    assert trainer.progress.history[2]["train_loss"] == pytest.approx(dense.progress.history[2]["train_loss"], rel=0.3)


def test_averaged_weights_are_evaluated_and_the_others_trained(trained):
    with_average = trained("base", "-t rank --width 0.25 --epochs 3 --average 0.5")
    without = trained("base", "-t rank --width 0.25 --epochs 3")
    for averaged, ours in zip(with_average.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(averaged, ours)
    assert with_average.average.n_averaged == 12
    last = with_average.average.module.fc.weight
    assert not torch.equal(last, without.model.fc.weight)
    torch.testing.assert_close(last, without.model.fc.weight, rtol=0, atol=0.05)


def test_validation_images_are_those_left_out_of_training(trained, refused):
    trainer = trained("base", "-t dense --width 0.125 --epochs 1 --validation 6")
    assert (trainer.train_loader.num_images, trainer.test_loader.num_images) == (30, 6)
    every = trained("base", "-t dense --width 0.125 --epochs 1").train_loader.images
    both = torch.cat((trainer.train_loader.images, trainer.test_loader.images))
    assert sorted(map(int, both.long().sum((1, 2, 3)))) == sorted(map(int, every.long().sum((1, 2, 3))))
    assert sorted(trainer.test_loader.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert "hold out fewer" in refused("base", "-t dense --validation 36")
