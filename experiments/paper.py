"""What the paper prints: the accuracies of its Table 1 (arXiv 1907.11432v3), to stand beside measured ones.

Parameters and FLOPs, as printed, are in table1_counts.py.
"""

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashionmnist")
ACCURACY = {  # per cent on these, of the dense network; differences to it of "-Lr" and "-LRr"
    "Base": ((87.2, 61.0, 92.0, 99.3, 93.5), (-0.1, -0.1, 0.6, -0.1, -0.2), (-0.6, -0.6, 0.2, -0.2, -0.8)),
    "VGG11": ((90.4, 65.4, 95.4, 99.3, 93.8), (0.0, 0.0, 0.1, 0.1, -0.2), (-0.6, -1.1, 0.0, 0.1, -0.2)),
    "AllConv": ((85.0, 42.7, 94.5, 99.0, 92.6), (-0.9, -0.2, 0.1, -0.1, 0.1), (-3.1, -1.6, -1.9, -0.2, -0.4)),
    "ResNet-18": ((91.9, 66.2, 96.2, 99.4, 94.6), (-0.8, 2.6, 0.1, 0.0, -0.2), (-1.9, 1.5, -0.2, -0.1, -0.2)),
    "ResNeXt-29": ((92.9, 76.3, 96.2, 99.3, 94.5), (0.5, -2.1, -0.3, 0.0, -0.1), (0.8, -2.9, -0.7, 0.1, -0.3)),
    "MobileNetV2": ((93.1, 73.5, 96.1, 99.5, 93.5), (-0.3, -1.8, -0.1, -0.1, 0.2), (-1.7, -3.0, -0.1, -0.1, 0.4)),
}


def accuracies(network: str, dataset: str) -> dict[str, float]:
    """Return the accuracies in per cent by method, `Conv`, `-Lr` and `-LRr`; none for what the table does not have.

    Args:
        network: as the table calls it, `ResNet-18`.
        dataset: one of `DATASETS`.
    """
    if network not in ACCURACY or dataset not in DATASETS:
        return {}
    dense, full, low = (values[DATASETS.index(dataset)] for values in ACCURACY[network])
    return {"Conv": dense, "-Lr": round(dense + full, 1), "-LRr": round(dense + low, 1)}
