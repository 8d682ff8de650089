"""The loss of a batch, with soft targets as Hinton's, and the longest gradient."""

import pytest
import torch
import torch.nn.functional as F

from training.objective import loss_of
from training.recipe import Recipe


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
