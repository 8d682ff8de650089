"""The pruning controllers: they reach what they are asked for, count training steps only, and survive saving."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from linearconv_sparse import PUBLISHED_INTERVAL, PUBLISHED_STEP, LinearConvSparse, schedule_pruning
from tests.helpers.runs import exit_code, fork


def scheduled(model, *run, lr=0.0, **settings):
    """An optimizer that prunes the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule_pruning(model, optimizer, *run, **settings)
    return optimizer


def train(model, optimizer, steps, size=3):
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, LinearConvSparse))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(1, channels, size, size)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("sparsity", (0, 0.9))
def test_gradual_pruning_reaches_its_target_along_the_cubic_and_stays(sparsity):
    layer = LinearConvSparse(3, 64, 3, sparsity=sparsity, prune_begin=10, prune_end=50, prune_every=5)
    optimizer = scheduled(layer)
    for step in range(1, 71):  # the one to come
        if step < 10:
            assert layer.pruned_fraction == 0
        elif step in (10, 15, 30, 50):
            expected = sparsity * (1 - (1 - (step - 10) / 40) ** 3)
            assert layer.pruned_fraction == pytest.approx(expected, abs=1 / layer.mask.numel())
        optimizer.step()
    assert layer.pruned_fraction == pytest.approx(sparsity, abs=1 / layer.mask.numel())


def test_exactly_the_wanted_share_is_pruned_by_magnitude():
    layer, ties = (LinearConvSparse(3, 16, 3, sparsity=0.5) for _ in range(2))
    nn.init.constant_(ties.linear_weights, 0.1)
    scheduled(nn.ModuleList([layer, ties]), 1, begin=0, end=1)
    magnitude, kept = layer.linear_weights.abs(), layer.mask.bool()
    assert layer.threshold == magnitude[~kept].max() <= magnitude[kept].min()
    assert layer.pruned_fraction == ties.pruned_fraction == 0.5


def test_the_published_controller_follows_its_formula():
    layer = LinearConvSparse(3, 32, 3, sparsity=0.5, schedule="published")
    nn.init.constant_(layer.linear_weights, 1.0)
    layer.linear_weights.data[0] = 1e-6  # 1/16 of the coefficients
    optimizer = scheduled(layer)
    for _ in range(PUBLISHED_INTERVAL - 2):
        optimizer.step()
    assert layer.threshold == 0 and layer.pruned_fraction == 0
    optimizer.step()  # the next one is the 500th
    first = (2 / (1 + 10 ** (10 * (0 - 0.5))) - 1) * PUBLISHED_STEP  # nothing is pruned by a threshold of 0
    assert layer.pruned_fraction == 0 and layer.threshold.item() == pytest.approx(first, rel=1e-4)
    for _ in range(PUBLISHED_INTERVAL):
        optimizer.step()
    second = first + (2 / (1 + 10 ** (10 * (1 / 16 - 0.5))) - 1) * PUBLISHED_STEP
    assert layer.pruned_fraction == 1 / 16 and layer.threshold.item() == pytest.approx(second, rel=1e-4)


def test_a_schedule_fits_a_run():
    first, second = LinearConvSparse(3, 32, 3, sparsity=0.4), LinearConvSparse(32, 16, 3, sparsity=0.4)
    model = nn.Sequential(first, nn.ReLU(), second)
    optimizer = scheduled(model, 30)
    assert (first.prune_begin, first.prune_end, first.prune_every) == (3, 18, 1)
    train(model, optimizer, 30, size=8)
    for layer in (first, second):
        assert layer.steps == 30 and layer.pruned_fraction == pytest.approx(0.4, abs=0.02)
    with pytest.raises(ValueError):
        schedule_pruning(model, optimizer, 30, begin=0.6, end=0.5)
    assert train(first, scheduled(first, 1, begin=0), 1).pruned_fraction == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("fused", (False, True))
def test_a_step_that_a_gradscaler_skips_does_not_count(fused):
    layer = LinearConvSparse(3, 16, 3, sparsity=0.5, prune_begin=1, prune_end=8, prune_every=2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=fused)
    schedule_pruning(layer, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    taken = 0
    for bad in (True, False, False, True, True, False, False, True, False, False):
        optimizer.zero_grad()
        loss = layer(torch.randn(1, 3, 3, 3)).square().mean() * (float("inf") if bad else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        taken += not bad
        assert layer.steps == taken
        assert layer.pruned_fraction == round(layer.target_at(min(taken + 1 - taken % 2, 8)) * 64) / 64


def test_the_last_call_says_which_optimizer_counts():
    layer, other = LinearConvSparse(3, 8, 3), LinearConvSparse(3, 8, 3)
    first = scheduled(nn.Sequential(layer, other))
    schedule_pruning(layer, first)
    first.step()
    assert layer.steps == other.steps == 1
    second = scheduled(layer)
    for optimizer in (first, second, second):
        optimizer.step()
    assert layer.steps == 3 and other.steps == 2


def test_a_backward_pass_after_the_mask_has_changed_uses_the_mask_of_its_forward_pass():
    layer = LinearConvSparse(3, 16, 3, sparsity=0.5, prune_begin=2, prune_end=2)
    optimizer = scheduled(layer)
    for parameter in layer.parameters():
        parameter.grad = None  # so that the step changes nothing but the mask
    loss = layer(torch.randn(1, 3, 5, 5)).square().sum()
    optimizer.step()
    loss.backward()
    assert layer.pruned_fraction == 0.5 and (layer.linear_weights.grad[layer.mask == 0] != 0).any()


def test_a_compiled_layer_is_one_graph_with_any_mask_and_a_compiled_optimizer_prunes():
    torch._dynamo.reset()
    layer = LinearConvSparse(3, 32, 3, sparsity=0.5, prune_end=4, prune_every=1)
    optimizer, graphs = scheduled(layer, lr=0.1), CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(6):
        compiled(torch.randn(1, 3, 5, 5)).square().mean().backward()
        step()
    assert graphs.frame_count == 1
    assert layer.steps == 6 and layer.pruned_fraction == 0.5


WRAPPERS = {
    "distributed": nn.parallel.DistributedDataParallel,
    "sharded": fully_shard,
    "flattened": partial(FullyShardedDataParallel, device_id=torch.device("cpu")),
}


def train_with_another_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, wrap in WRAPPERS.items():
        torch.manual_seed(0)
        layer = LinearConvSparse(3, 16, 3, sparsity=0.5, prune_end=4, prune_every=1)
        model = wrap(nn.Sequential(layer))
        optimizer = scheduled(model, lr=0.1)
        torch.manual_seed(rank)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()
        torch.save((layer.steps, layer.mask), folder / f"{name}{rank}")


def test_processes_agree_on_the_mask_however_they_share_the_parameters(tmp_path):
    processes = [fork(partial(train_with_another_process, rank, tmp_path)) for rank in (0, 1)]
    assert [exit_code(process) for process in processes] == [0, 0]
    _, expected = torch.load(tmp_path / "distributed0")
    assert expected.sum() == 32
    for name in WRAPPERS:
        for rank in (0, 1):
            steps, mask = torch.load(tmp_path / f"{name}{rank}")
            assert steps == 6 and torch.equal(mask, expected), name


@pytest.mark.parametrize("schedule", ("gradual", "published"))
def test_saved_and_copied_layers_resume_their_pruning(schedule, monkeypatch):
    monkeypatch.setattr("linearconv_sparse.PUBLISHED_INTERVAL", 3)
    monkeypatch.setattr("linearconv_sparse.PUBLISHED_STEP", 1e-2)
    layer, loaded = (LinearConvSparse(3, 32, 3, sparsity=0.5, schedule=schedule, prune_end=40) for _ in range(2))
    train(layer, scheduled(layer), 25)
    optimizer = scheduled(loaded)
    train(loaded, optimizer, 11)
    loaded.load_state_dict(layer.state_dict())
    optimizers = {loaded: optimizer}
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        optimizers[copied] = scheduled(copied)  # no optimizer prunes a copy until it is scheduled
    train(layer, scheduled(layer), 8)  # past an update at step 30
    assert layer.pruned_fraction > 0.1
    for other, optimizer in optimizers.items():
        assert other.steps == 25
        train(other, optimizer, 8)
        assert torch.equal(other.mask, layer.mask) and other.threshold == layer.threshold


def test_a_published_checkpoint_without_controller_state_loads():
    layer = LinearConvSparse(3, 8, 3)
    state = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    layer.load_state_dict(state)
    assert torch.equal(layer.linear_weights, state["linear_weights"])
    ours = LinearConvSparse(3, 8, 3).state_dict()
    del ours["mask"]
    with pytest.raises(RuntimeError, match="mask"):  # what we saved ourselves must be whole
        layer.load_state_dict(ours)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.complex64))
@pytest.mark.parametrize("schedule", ("gradual", "published"))
def test_coefficients_of_every_dtype_are_pruned(dtype, schedule, monkeypatch):
    monkeypatch.setattr("linearconv_sparse.PUBLISHED_INTERVAL", 1)
    made = LinearConvSparse(3, 16, 3, sparsity=0.5, schedule=schedule, prune_end=4, dtype=dtype)
    moved = LinearConvSparse(3, 16, 3, sparsity=0.5, schedule=schedule, prune_end=4).to(dtype)
    assert made.threshold.dtype == dtype.to_real() == made.linear_weights.abs().dtype
    for layer in (made, moved):
        layer.linear_weights.data.fill_(0.1)[0] = 0  # 1/8 of them
        optimizer = scheduled(layer)
        for _ in range(4):
            optimizer.step()
        assert layer.mask.dtype == dtype
        assert layer.pruned_fraction == (0.5 if schedule == "gradual" else 1 / 8)
