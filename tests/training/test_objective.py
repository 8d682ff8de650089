"""Soft targets: the loss is Hinton's, the teacher is unchanged, and labels are not needed."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.networks import squeezenet_state
from training.objective import loss_of
from training.recipe import Recipe

NETWORK = "--network torchvision:squeezenet1_1 --calibrate 0 --no-amp --epochs 1"


@pytest.fixture
def options(tmp_path):
    torch.save(squeezenet_state(), tmp_path / "weights.pth")
    return f"{NETWORK} --weights {tmp_path / 'weights.pth'} -t rank"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_of_a_batch_is_that_of_labels_and_teacher(share):
    logits, images, teacher = torch.randn(6, 5), torch.randn(6, 4), torch.nn.Linear(4, 5)
    labels, recipe = torch.arange(6) % 5, Recipe(1.0, 1, distill=share, temperature=3.0, label_smoothing=0.9)
    ours, theirs = ((values.double() / 3).softmax(1) for values in (logits, teacher(images)))
    soft = 9 * (theirs * (theirs / ours).log()).sum(1).mean()
    targets = 0.1 * F.one_hot(labels, 5) + 0.9 / 5
    expected = share * soft - (1 - share) * (targets * logits.log_softmax(1)).sum(1).mean()
    assert loss_of(logits, images, labels, recipe, teacher).item() == pytest.approx(expected.item(), rel=1e-5)
    if share == 1:  # soft targets alone need no labels
        assert loss_of(logits, images, None, recipe, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("given, share", [("", 0.5), ("1", 1.0)])
def test_the_teacher_is_the_network_before_conversion_and_unchanged(trained, options, tmp_path, given, share):
    trainer = trained("zoo", f"{options} --distill {given}")
    teacher = trainer.teacher
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert trainer.recipe.distill == share
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())


def test_soft_targets_alone_take_the_teachers_classes(run, tmp_path):
    torch.save(squeezenet_state(classes=9), tmp_path / "nine.pth")
    options = f"{NETWORK} --weights {tmp_path / 'nine.pth'} -t rank --distill 1 --num-classes 9"
    state = torch.load(run("zoo", options) / "best.pt", weights_only=True)
    assert state["settings"]["num_classes"] == 9 and state["settings"]["distill"] == 1


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_no_gradient_is_longer_than_it_may_be(run, monkeypatch, clip):
    norms, step = [], torch.optim.SGD.step

    def noting(optimizer, *given):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        return step(optimizer, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    run("base", f"-t rank --width 0.125 --epochs 2 --no-amp --optimizer sgd --clip {clip}")
    assert (max(norms) <= clip * 1.001) and (max(norms) > 0.04)
