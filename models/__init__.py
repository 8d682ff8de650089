"""The paper's networks, one runnable script per architecture.

All constructors take `(conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0)`. `conv` has the signature of
nn.Conv2d: for example `LinearConv`, `partial(LinearConvLowRank, rank=10)` or nn.Conv2d.
"""


def scale(channels, width):
    """Return `channels` times the width multiplier, rounded, and at least 1."""
    return max(1, round(channels * width))
