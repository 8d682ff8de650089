"""The layers on a GPU: the same outputs and gradients as on a CPU."""

import pytest
import torch

from tests.helpers.layers import computes, prune_half, relative_error, variants

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def _layer_and_images(variant, compute):
    torch.manual_seed(0)
    layer = prune_half(variant(16, 32, 3, padding=1, compute=compute))
    return layer, torch.randn(4, 16, 9, 7)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@variants
@computes
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_outputs_and_gradients_are_those_of_a_cpu(variant, compute, memory_format):
    layer, images = _layer_and_images(variant, compute)
    results = {}
    for device in ("cpu", "cuda"):
        layer.to(device, memory_format=memory_format).zero_grad()
        mine = images.clone().to(device).contiguous(memory_format=memory_format).requires_grad_()
        output = layer(mine)
        output.square().sum().backward()
        gradients = {name: p.grad.to("cpu", copy=True) for name, p in layer.named_parameters()}
        results[device] = {"output": output.detach().cpu(), "input": mine.grad.cpu()} | gradients
    for name, theirs in results["cpu"].items():
        assert relative_error(results["cuda"][name], theirs) < 1e-4, name


@variants
@computes
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("autocast", (False, True), ids=("cast", "autocast"))
def test_inference_in_every_precision(variant, compute, dtype, autocast, memory_format=torch.channels_last):
    layer, images = _layer_and_images(variant, compute)
    expected = layer.eval()(images).detach()
    layer.to("cuda", None if autocast else dtype, memory_format=memory_format)
    images = images.to("cuda", None if autocast else dtype).contiguous(memory_format=memory_format)
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=autocast and dtype != torch.float32):
        outputs = [layer(images) for _ in range(2)]
    assert torch.equal(*outputs) and outputs[0].dtype == dtype
    assert outputs[0].is_contiguous(memory_format=memory_format)
    assert relative_error(outputs[0].float().cpu(), expected) < TOLERANCE[dtype]
