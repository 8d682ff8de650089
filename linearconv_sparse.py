"""LinearConvSparse: LinearConv whose coefficients are pruned while it trains, A = linear_weights * mask.

Two controllers choose the mask. `"gradual"` (default) follows Zhu & Gupta, "To prune, or not to prune" (2017): between
two training steps the share of pruned coefficients rises along a cubic to the target, the smallest ones going first.
`"published"` is the controller of the paper's code, which moves a threshold in steps of at most 1e-5: in 8 epochs of
CIFAR-10 it pruned 5.6 % where 50 % were asked for (results/sparse_controllers.json).
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from linearconv import LinearConv
from linearconv_features import in_plain_eager_mode

SCHEDULES = ("gradual", "published")
PUBLISHED_INTERVAL = 500  # training steps between two updates of the published controller
PUBLISHED_STEP = 1e-5  # largest change of its threshold in one update


class LinearConvSparse(LinearConv):
    """LinearConv with A = linear_weights * mask, the mask pruning towards a target while the layer trains.

    A training step is a forward pass in training mode with gradients on; evaluation never counts.

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
        - mask (out_channels - P, P), 1 for what is kept; steps (), training steps so far; threshold (), magnitude
          at or below which a coefficient was pruned last. They are saved and loaded with the layer.

    Raises:
        ValueError: for a sparsity outside [0, 1), an unknown schedule, or `prune_end < prune_begin`.
    """

    _version = 2  # version 1 is the published code, whose checkpoints hold no controller state

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
        self.prune_begin, self.prune_end, self.prune_every = prune_begin, prune_end, prune_every

    def _create_factors(self, device=None, dtype=None):
        super()._create_factors(device=device, dtype=dtype)
        self.register_buffer("mask", torch.empty_like(self.linear_weights, requires_grad=False))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32, device=device))

    def reset_parameters(self) -> None:
        """Draw all parameters anew, prune nothing, and start counting from zero."""
        super().reset_parameters()
        self.mask.fill_(1)
        self.steps.zero_()
        self.threshold.zero_()
        self._steps_on_host = 0  # mirrors `steps`, so that no step waits for the device; None: read it again

    def factors(self) -> tuple[Tensor, ...]:
        return (self.linear_weights * self.mask,)

    def keep_mask(self, mask: Tensor) -> None:
        """Prune by a mask (F - P, P) of zeros and ones from now on: the gradual schedule counts as finished."""
        self.mask.copy_(mask)
        self.steps.fill_(self.prune_end)
        self._steps_on_host = None

    @property
    def pruned_fraction(self) -> float:
        """Share of the coefficients that the mask prunes now, in [0, 1]; 0 for a layer without coefficients."""
        return 1 - self.mask.float().mean().item() if self.mask.numel() else 0.0

    def target_at(self, step: int) -> float:
        """Return the share of pruned coefficients that the gradual schedule asks for after `step` training steps."""
        if step >= self.prune_end:
            return self.sparsity
        done = max(0.0, (step - self.prune_begin) / (self.prune_end - self.prune_begin))
        return self.sparsity * (1 - (1 - done) ** 3)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self._train_step()
        return super().forward(input)

    @torch.compiler.disable  # under torch.compile it runs between two graphs
    @torch.no_grad()
    def _train_step(self):
        if not in_plain_eager_mode():
            return  # traces and exports are of a frozen layer
        if self._steps_on_host is None:
            self._steps_on_host = int(self.steps)
        self._steps_on_host += 1
        self.steps += 1
        step = self._steps_on_host
        if self.mask.numel() == 0:
            return
        if self.schedule == "published":
            if step % PUBLISHED_INTERVAL == 0:
                self._move_threshold()
        elif self.prune_begin <= step <= self.prune_end:
            if (step - self.prune_begin) % self.prune_every == 0 or step == self.prune_end:
                self._prune_smallest(round(self.target_at(step) * self.mask.numel()))

    def _prune_smallest(self, count):
        magnitude = self.linear_weights.abs().flatten()
        smallest, where = magnitude.topk(count, largest=False, sorted=False)  # exactly `count`, ties or not
        self.mask.fill_(1).view(-1)[where] = 0
        self.threshold.copy_(smallest.amax() if count else torch.zeros_like(self.threshold))

    def _move_threshold(self):
        self.mask.copy_(self.linear_weights.abs() > self.threshold)
        share = 1 - self.mask.float().mean()
        self.threshold += (2 / (1 + 10 ** (10 * (share - self.sparsity))) - 1) * PUBLISHED_STEP

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args, **kwargs):
        if (local_metadata.get("version") or 1) < 2:
            for name in ("mask", "steps", "threshold"):
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        self._steps_on_host = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={self.sparsity:g}, schedule={self.schedule!r}"


def schedule_pruning(
    module: nn.Module, total_steps: int, begin: float = 0.1, end: float = 0.6, updates: int = 100
) -> None:
    """Fit the gradual schedule of every LinearConvSparse in `module` to a training run of `total_steps` steps.

    Args:
        module: the network.
        total_steps: training steps (batches) of the whole run.
        begin, end: shares of the run at which pruning starts and reaches its target, 0 <= begin <= end <= 1.
        updates: how often the mask is chosen anew in between, at most once a step.
    """
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"pruning needs 0 <= begin <= end <= 1, got {begin} and {end}")
    for layer in module.modules():
        if isinstance(layer, LinearConvSparse):
            layer.prune_begin = round(begin * total_steps)
            layer.prune_end = round(end * total_steps)
            layer.prune_every = max(1, (layer.prune_end - layer.prune_begin) // updates)
