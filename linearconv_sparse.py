"""LinearConvSparse: LinearConv whose coefficients are pruned while it trains, A = linear_weights * mask.

The mask is chosen as by Zhu & Gupta, "To prune, or not to prune" (2017), or by the slower controller of the paper.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from linearconv import LinearConv

SCHEDULES = ("gradual", "published")
PUBLISHED_INTERVAL = 500  # training steps between two updates of the published controller
PUBLISHED_STEP = 1e-5  # largest change of its threshold in one update


class LinearConvSparse(LinearConv):
    """LinearConv with A = linear_weights * mask, the mask pruning towards a target while the layer trains.

    A layer that is trained without :func:`schedule_pruning` stays unpruned. Forward passes only read the mask.

    Args:
        sparsity: share of the coefficients to prune, 0 <= sparsity < 1. Default: 0.25
        schedule: `"gradual"` prunes at step t the smallest `sparsity * (1 - (1 - (t - begin) / (end - begin))^3)` of
            the coefficients by magnitude. `"published"` sets `mask = |A| > threshold` every 500 steps, and then adds
            `(2 / (1 + 10^(10 (pruned share - sparsity))) - 1) * 1e-5` to the threshold. Default: `"gradual"`
        prune_begin, prune_end, prune_every: first and last gradual step, steps between updates. Default: 0, 1000, 10
        *args, **kwargs: all other arguments of :class:`linearconv.LinearConv`.
    """

    mask: Tensor  # a buffer (F - P, P): 1 for a coefficient that is kept, 0 for a pruned one
    steps: Tensor  # a buffer (): training steps so far
    threshold: Tensor  # a buffer (): magnitude up to which the last update pruned
    _version = 2  # version 1 is the published code, whose checkpoints have no state of the controller
    _hook_id: int | None = None  # of the optimizer hook that prunes this layer
    _steps_bound: int | None = None  # upper bound of `steps`, known without waiting for the device

    def __init__(
        self,
        *args: Any,
        sparsity: float = 0.25,
        schedule: str = "gradual",
        prune_begin: int = 0,
        prune_end: int = 1000,
        prune_every: int = 10,
        **kwargs: Any,
    ) -> None:
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not 0 <= prune_begin <= prune_end or prune_every < 1:
            raise ValueError(f"pruning needs 0 <= {prune_begin=} <= {prune_end=} and {prune_every=} >= 1")
        super().__init__(*args, **kwargs)
        self.sparsity, self.schedule = sparsity, schedule
        self.prune_begin, self.prune_end, self.prune_every = prune_begin, max(1, prune_end), prune_every

    def _create_factors(self, device=None, dtype=None):
        super()._create_factors(device=device, dtype=dtype)
        self.register_buffer("mask", torch.empty_like(self.linear_weights, requires_grad=False))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("threshold", torch.zeros((), dtype=self.mask.real.dtype, device=device))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for buffer, value in ((self.mask, 1), (self.steps, 0), (self.threshold, 0)):
            buffer.fill_(value)
        self._steps_bound = None

    def factors(self) -> tuple[Tensor, ...]:
        return (self.linear_weights * self.mask,)

    def keep_mask(self, mask: Tensor) -> None:
        """Prune by a mask (F - P, P) of zeros and ones from now on; the gradual schedule counts as finished."""
        self.mask = mask.detach().to(self.mask, copy=True)
        self.steps.fill_(self.prune_end)
        self._steps_bound = None

    @property
    def pruned_fraction(self) -> float:
        """Share of the coefficients that the mask prunes now, in [0, 1]; 0 for a layer without coefficients."""
        return (self.mask == 0).float().mean().item() if self.mask.numel() else 0.0

    def target_at(self, step: int) -> float:
        """Return the share of pruned coefficients that the gradual schedule asks for at training step `step`."""
        length = self.prune_end - self.prune_begin
        done = max(0.0, (step - self.prune_begin) / length) if step < self.prune_end else 1.0
        return self.sparsity * (1 - (1 - done) ** 3)

    def _is_due(self):
        if self._steps_bound is None or self._has_update(self._steps_bound + 1):
            self._steps_bound = self.steps.item()
        return self._has_update(self._steps_bound + 1)

    def _has_update(self, step):
        if self.schedule == "published":
            return step % PUBLISHED_INTERVAL == 0 and self.mask.numel() > 0
        return step == self.prune_end or step in range(self.prune_begin, self.prune_end, self.prune_every)

    @torch.no_grad()
    def _choose_mask(self):
        weights = self.linear_weights
        magnitude = (weights.full_tensor() if hasattr(weights, "full_tensor") else weights).abs()  # fully_shard
        if self.schedule == "published":
            kept = magnitude > self.threshold.real
            excess = 1 - kept.float().mean() - self.sparsity
            self.threshold += (2 / (1 + 10 ** (10 * excess)) - 1) * PUBLISHED_STEP
        else:
            # A layer that a conversion has pruned keeps its share until the schedule asks for a larger one.
            count = max(round(self.target_at(self._steps_bound + 1) * magnitude.numel()), int((self.mask == 0).sum()))
            smallest, indices = magnitude.flatten().topk(count, largest=False, sorted=False)  # exact, also with ties
            kept = torch.ones_like(magnitude.flatten()).index_fill(0, indices, 0).view_as(magnitude)
            self.threshold.copy_(smallest.amax() if count else torch.zeros_like(self.threshold))
        self.mask = kept.to(self.mask.dtype)  # a new tensor: pending backward passes need the old mask

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 2:
            for name in ("mask", "steps", "threshold"):
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._steps_bound = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={self.sparsity:g}, schedule={self.schedule!r}"


def schedule_pruning(
    module: nn.Module, optimizer: Optimizer, total_steps: int | None = None, begin: float = 0.1, end: float = 0.6
) -> None:
    """Let the steps of an optimizer prune every LinearConvSparse in `module`. For each layer, the last call holds.

    Args:
        module, optimizer: the network and the optimizer of its coefficients. Steps that GradScaler skips do not count.
        total_steps: steps of the whole run, to which gradual schedules are fitted. Default: keep the schedules
        begin, end: shares of the run at which pruning begins and reaches its target, 0 <= begin <= end <= 1.
    """
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"pruning needs 0 <= begin <= end <= 1, got {begin} and {end}")
    layers = [layer for layer in module.modules() if isinstance(layer, LinearConvSparse)]
    if not layers:
        return
    fsdp = next((part for part in module.modules() if hasattr(part, "summon_full_params")), None)

    def renew_masks(layers):
        due = [layer for layer in layers if layer._is_due()]
        with fsdp.summon_full_params(module, writeback=False) if fsdp and due else nullcontext():
            for layer in due:
                layer._choose_mask()

    def prune(optimizer, *_):
        mine = [layer for layer in layers if layer._hook_id == hook.id]
        skipped = getattr(optimizer, "found_inf", None)  # a tensor, 1 if a fused optimizer skipped the step
        for layer in mine:
            layer.steps += 1 if skipped is None else (skipped == 0).to(layer.steps.device)
            layer._steps_bound = None if layer._steps_bound is None else layer._steps_bound + 1
        renew_masks(mine)

    hook = optimizer.register_step_post_hook(torch.compiler.disable(prune))  # disable() imports the compiler
    for layer in layers:
        layer._hook_id, layer._steps_bound = hook.id, None
        if total_steps is not None:
            layer.prune_begin, layer.prune_end = round(begin * total_steps), max(1, round(end * total_steps))
            layer.prune_every = max(1, (layer.prune_end - layer.prune_begin) // 100)  # at most 100 updates
    # The masks of the first step. A second update by the published controller would move its threshold twice.
    renew_masks([layer for layer in layers if layer.schedule == "gradual"])
