"""LinearConvSparse: LinearConv whose coefficients are pruned while it trains, A = linear_weights * mask.

Forward passes only read the mask; optimizer steps renew it, see `schedule_pruning`. Two controllers choose it.
`"gradual"` (default) follows Zhu & Gupta, "To prune, or not to prune" (2017): between two training steps the share of
pruned coefficients rises along a cubic to the target, the smallest ones going first. `"published"` is the controller of
the paper's code, which moves a threshold in steps of at most 1e-5: in 8 epochs of CIFAR-10 it pruned 5.6 % where 50 %
were asked for (results/sparse_controllers.json).
"""

import warnings
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from linearconv import LinearConv

SCHEDULES = ("gradual", "published")
PUBLISHED_INTERVAL = 500  # training steps between two updates of the published controller
PUBLISHED_STEP = 1e-5  # largest change of its threshold in one update
PATIENCE = 100  # steps that a layer may be trained and not pruned before that is said
_layers = WeakSet()  # every LinearConvSparse of this process


class LinearConvSparse(LinearConv):
    """LinearConv with A = linear_weights * mask, the mask pruning towards a target while the layer trains.

    A training step is a step of the optimizer given to :func:`schedule_pruning`; before it begins, its mask is chosen.

    Args:
        sparsity: share of the coefficients to prune, 0 <= sparsity < 1. Default: 0.25
        schedule: `"gradual"`: at training step t, prune the smallest
            `sparsity * (1 - (1 - (t - begin) / (end - begin))^3)` of the coefficients by magnitude; reached at
            `end`, then the mask stays. `"published"`: every 500 steps, `mask = |A| > threshold`, then
            `threshold += (2 / (1 + 10^(10 (share - sparsity))) - 1) * 1e-5` with `share` the pruned one.
            Default: `"gradual"`
        prune_begin, prune_end, prune_every: first and last step of the gradual schedule and the steps between
            two updates; :func:`schedule_pruning` sets them from the length of a training run.
            Default: 0, 1000, 10

    All other arguments are those of :class:`linearconv.LinearConv`.

    Parameters and buffers:
        - conv_weights, linear_weights, bias: as in LinearConv
        - mask (out_channels - P, P), 1 for what is kept; steps (), training steps so far; threshold (), magnitude at
          or below which a coefficient was pruned last, in their real dtype. They are saved and loaded with the layer.

    Raises:
        ValueError: for a sparsity outside [0, 1), an unknown schedule, or `prune_end < prune_begin`.
    """

    _version = 2  # version 1 is the published code, whose checkpoints hold no controller state
    _hook = None  # id of the optimizer hook that prunes this layer
    _steps_at_most = None  # what the host knows of `steps`; None: nothing
    _steps_unpruned = 0  # of any optimizer since that of this layer

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
            raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not 0 <= prune_begin <= prune_end or prune_every < 1:
            given = f"{prune_begin}, {prune_end}, {prune_every}"
            raise ValueError(f"pruning needs 0 <= prune_begin <= prune_end and prune_every >= 1, got {given}")
        super().__init__(*args, **kwargs)
        self.sparsity = sparsity
        self.schedule = schedule
        self.prune_begin, self.prune_end, self.prune_every = prune_begin, max(1, prune_end), prune_every
        _layers.add(self)

    def __setstate__(self, state):
        super().__setstate__(state)
        _layers.add(self)

    def _create_factors(self, device=None, dtype=None):
        super()._create_factors(device=device, dtype=dtype)
        self.register_buffer("mask", torch.empty_like(self.linear_weights, requires_grad=False))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("threshold", torch.zeros((), dtype=self.mask.real.dtype, device=device))

    def reset_parameters(self) -> None:
        """Draw all parameters anew, prune nothing, and start counting from zero."""
        super().reset_parameters()
        self.mask.fill_(1)
        self.steps.zero_()
        self.threshold.zero_()
        self._steps_at_most = None

    def factors(self) -> tuple[Tensor, ...]:
        return (self.linear_weights * self.mask,)

    def keep_mask(self, mask: Tensor) -> None:
        """Prune by a mask (F - P, P) of zeros and ones from now on: the gradual schedule counts as finished."""
        self.mask = mask.detach().to(self.mask, copy=True)
        self.steps.fill_(self.prune_end)
        self._steps_at_most = None

    @property
    def pruned_fraction(self) -> float:
        """Share of the coefficients that the mask prunes now, in [0, 1]; 0 for a layer without coefficients."""
        return (self.mask == 0).float().mean().item() if self.mask.numel() else 0.0

    def target_at(self, step: int) -> float:
        """Return the share of pruned coefficients that the gradual schedule asks for at training step `step`."""
        if step >= self.prune_end:
            return self.sparsity
        done = max(0.0, (step - self.prune_begin) / (self.prune_end - self.prune_begin))
        return self.sparsity * (1 - (1 - done) ** 3)

    def _count(self, skipped):
        """Count a training step, if `skipped`, None or a tensor (), is not 1."""
        self._steps_unpruned = 0
        self.steps += 1 if skipped is None else (skipped == 0).to(self.steps.device)
        if self._steps_at_most is not None:
            self._steps_at_most += 1

    def _is_due(self):
        """True where the coming training step is to have a new mask; waits for the device only then."""
        if self._steps_at_most is None or self._has_update(self._steps_at_most + 1):
            self._steps_at_most = int(self.steps)
        return self._has_update(self._steps_at_most + 1)

    def _has_update(self, step):
        if self.schedule == "published":
            return step % PUBLISHED_INTERVAL == 0 and self.mask.numel() > 0
        on_time = (step - self.prune_begin) % self.prune_every == 0 or step == self.prune_end
        return on_time and self.prune_begin <= step <= self.prune_end

    @torch.no_grad()
    def _choose_mask(self):
        coefficients = self.linear_weights
        if hasattr(coefficients, "full_tensor"):  # a part, under fully_shard
            coefficients = coefficients.full_tensor()
        magnitude = coefficients.abs()
        if self.schedule == "published":
            kept = magnitude > self.threshold.real
            share = 1 - kept.float().mean()
            self.threshold += (2 / (1 + 10 ** (10 * (share - self.sparsity))) - 1) * PUBLISHED_STEP
        else:
            # A layer that was pruned when its schedule began, by a conversion, stays so.
            count = max(round(self.target_at(self._steps_at_most + 1) * magnitude.numel()), int((self.mask == 0).sum()))
            smallest, where = magnitude.flatten().topk(count, largest=False, sorted=False)  # `count`, ties or not
            kept = torch.ones_like(magnitude.flatten()).index_fill(0, where, 0).view_as(magnitude)
            self.threshold.copy_(smallest.amax() if count else torch.zeros_like(self.threshold))
        self.mask = kept.to(self.mask.dtype)  # a new tensor: passes that are still to be differentiated keep the old

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args, **kwargs):
        if (local_metadata.get("version") or 1) < 2:
            for name in ("mask", "steps", "threshold"):
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        self._steps_at_most = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={self.sparsity:g}, schedule={self.schedule!r}"


def schedule_pruning(
    module: nn.Module,
    optimizer: Optimizer,
    total_steps: int | None = None,
    begin: float = 0.1,
    end: float = 0.6,
    updates: int = 100,
) -> None:
    """Let the steps of an optimizer prune every LinearConvSparse in `module`.

    A step counts once, whatever passes it took, and not at all where a GradScaler skips it. Call again for a new
    optimizer or other layers: the last call that a layer was part of holds.

    Args:
        module: the network.
        optimizer: of several, the one that has the coefficients.
        total_steps: steps of the whole run, to fit the gradual schedule to; left out, the layers keep theirs.
        begin, end: shares of the run at which pruning starts and reaches its target, 0 <= begin <= end <= 1.
        updates: how often the mask is chosen anew in between, at most once a step.
    """
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"pruning needs 0 <= begin <= end <= 1, got {begin} and {end}")
    layers = [layer for layer in module.modules() if isinstance(layer, LinearConvSparse)]
    fsdp = next((part for part in module.modules() if hasattr(part, "summon_full_params")), None)
    if not layers:
        return

    def renew_masks(layers):
        due = [layer for layer in layers if layer._is_due()]
        with fsdp.summon_full_params(module, writeback=False) if fsdp and due else nullcontext():
            for layer in due:
                layer._choose_mask()

    @torch.compiler.disable  # here, as it loads torch._dynamo; the optimizer has done so already
    def prune(optimizer, *_):
        mine = [layer for layer in layers if layer._hook == hook.id]
        for layer in mine:
            layer._count(getattr(optimizer, "found_inf", None))  # 1 where a fused optimizer skipped the step
        renew_masks(mine)

    hook = optimizer.register_step_post_hook(prune)
    for layer in layers:
        layer._hook, layer._steps_at_most = hook.id, None
        if total_steps is not None:
            layer.prune_begin, layer.prune_end = round(begin * total_steps), max(1, round(end * total_steps))
            layer.prune_every = max(1, (layer.prune_end - layer.prune_begin) // updates)
    # The first step's masks. Renewing twice changes nothing but the threshold of the published controller.
    renew_masks([layer for layer in layers if layer.schedule == "gradual"])


def _warn_of_unpruned(optimizer, *_):
    """Called after the steps of every optimizer: say so where a layer is trained and never pruned."""
    if torch.compiler.is_compiling() or not _layers:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in tuple(_layers):
        if any(parameter.grad is not None and id(parameter) in stepped for parameter in layer.parameters()):
            layer._steps_unpruned += 1
            if layer._steps_unpruned == PATIENCE and layer.steps < layer.prune_end:
                if (layer.mask == 0).sum() < round(layer.sparsity * layer.mask.numel()):
                    text = f"LinearConvSparse is trained and not pruned for {PATIENCE} steps: call schedule_pruning"
                    warnings.warn(text, stacklevel=3)


register_optimizer_step_post_hook(_warn_of_unpruned)
