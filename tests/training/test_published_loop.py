"""The training loop of the paper, written again from its description, as an oracle for ours: 40 steps in float64.

Adam; cross-entropy; every 10th batch adds 0.01 times the sum of |C - I| over the layers, C being the correlation matrix
of a layer's flattened primary filters. All filters are built in every pass, by the formula of the paper, from plain
tensors; of this repository only the network's initial values and the batches are used.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataloaders import BatchLoader
from linearconv_variants import Variant
from models.base_xcnn import Base
from training.recipe import Recipe
from training.trainer import Trainer

STEPS, BATCH, LR, WEIGHT = 40, 5, 1e-3, 0.01
VARIANTS = {"dense": Variant("dense"), "full rank": Variant("rank"), "half rank": Variant("rank", rank=0.5)}


def train_as_published(state, batches):
    """Loss of every step of a Base network with these initial values (a state_dict) on these batches."""
    parameters = {name: v.clone().requires_grad_() for name, v in state.items() if "running" not in name and v.dim()}
    optimizer = torch.optim.Adam(parameters.values(), lr=LR)
    losses = []
    for step, (images, labels) in enumerate(batches, 1):
        x, correlation = images, 0.0
        for stage in range(4):
            conv, norm = f"feat.{stage}.0", f"feat.{stage}.1"
            if f"{conv}.weight" in parameters:
                filters = parameters[f"{conv}.weight"]
            else:
                primary = parameters[f"{conv}.conv_weights"]
                if f"{conv}.linear_weights" in parameters:
                    a = parameters[f"{conv}.linear_weights"]
                else:
                    a = parameters[f"{conv}.column_weights"] @ parameters[f"{conv}.row_weights"]
                filters = torch.cat([primary, torch.einsum("sp,pchw->schw", a, primary)])
                c = torch.corrcoef(primary.flatten(1)).clamp(-1, 1)
                correlation = correlation + (c - torch.eye(len(c), dtype=c.dtype)).abs().sum()
            x = F.conv2d(x, filters, parameters[f"{conv}.bias"], padding=1)
            x = F.batch_norm(x, None, None, parameters[f"{norm}.weight"], parameters[f"{norm}.bias"], training=True)
            x = F.max_pool2d(F.relu(x), 2)
        loss = F.cross_entropy(F.linear(x.flatten(1), parameters["fc.weight"], parameters["fc.bias"]), labels)
        if step % 10 == 0:
            loss = loss + WEIGHT * correlation
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_trainer_takes_the_steps_of_the_published_loop(variant, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Base(conv=variant.conv, width=0.25).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randint(256, (STEPS * BATCH, 3, 32, 32), dtype=torch.uint8), torch.arange(STEPS * BATCH) % 10
    loaders = [
        BatchLoader(images[:n], labels[:n], [0.5] * 3, [0.25] * 3, batch_size=BATCH) for n in (STEPS * BATCH, 10)
    ]
    batches = [(pixels.double(), classes) for pixels, classes in loaders[0]]

    losses, backward = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss.item()) or backward(loss))
    model.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
    Trainer(model, loaders, Recipe(LR, 1, BATCH, reg_weight=WEIGHT), {"seed": 0, "amp": False}, tmp_path).fit()
    monkeypatch.undo()
    expected = train_as_published(state, batches)
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
