"""The paper's networks, one runnable script per architecture.

All constructors take `(conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0)`. `conv` is called as nn.Conv2d is:
`LinearConv`, `partial(LinearConvLowRank, rank=10)`, nn.Conv2d itself.
"""


def scale(channels, width):
    """`channels` times the width multiplier, rounded, at least 1."""
    return max(1, round(channels * width))
