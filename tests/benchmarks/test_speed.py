"""What the benchmark of networks times is what training does."""

from argparse import Namespace

import torch

from benchmarks.speed import make_step
from linearconv_sparse import LinearConvSparse
from models.base_xcnn import Base


def test_a_training_step_of_sparse_layers_prunes_them():
    torch.manual_seed(0)
    options = Namespace(device="cpu", precision="float32", graphs=False)
    step, model, _ = make_step(lambda conv: Base(conv, width=0.25), LinearConvSparse, "train 50", options, False)
    layers = [module for module in model.modules() if isinstance(module, LinearConvSparse)]
    shares = []
    for _ in range(13):
        step()
        shares.append(sum(layer.pruned_fraction for layer in layers))
    assert [int(layer.steps) for layer in layers] == [13] * len(layers)
    changes = [step for step, (before, after) in enumerate(zip(shares, shares[1:], strict=False), 2) if before < after]
    assert changes == [5, 11]  # after these the masks of the 6th and of the 12th step are chosen
