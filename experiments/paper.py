"""Table 1 of the paper (arXiv 1907.11432v3) as printed: its networks, parameters, FLOPs and accuracies."""

from models.allconv_xcnn import AllConv
from models.base_xcnn import Base
from models.mobilenetv2_xcnn import MobileNetV2
from models.resnet_xcnn import ResNet18
from models.resnext_xcnn import ResNeXt29_2x64d
from models.vgg_xcnn import VGG11

NETWORKS = {
    "Base": Base,
    "VGG11": VGG11,
    "AllConv": AllConv,
    "ResNet-18": ResNet18,
    "ResNeXt-29": ResNeXt29_2x64d,
    "MobileNetV2": MobileNetV2,
}
METHODS = ("", "-Lr", "-LRr")  # of the rows of a network: dense, full rank, rank 10
PRINTED = {  # of these, as printed: parameters in M, FLOPs in B
    "Base": (("0.40", "0.017"), ("0.23", "0.060"), ("0.21", "0.025")),
    "VGG11": (("9.23", "0.171"), ("4.92", "2.398"), ("4.65", "0.350")),
    "AllConv": (("1.37", "0.315"), ("0.74", "0.440"), ("0.70", "0.344")),
    "ResNet-18": (("11.17", "0.558"), ("6.03", "3.074"), ("5.64", "0.775")),
    "ResNeXt-29": (("9.13", "1.424"), ("6.48", "5.089"), ("4.71", "1.691")),
    "MobileNetV2": (("2.30", "0.098"), ("3.92", "16.398"), ("1.35", "0.931")),
}
DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashionmnist")
ACCURACY = {  # per cent on these: dense network, then differences of "-Lr" and "-LRr" to it
    "Base": ((87.2, 61.0, 92.0, 99.3, 93.5), (-0.1, -0.1, 0.6, -0.1, -0.2), (-0.6, -0.6, 0.2, -0.2, -0.8)),
    "VGG11": ((90.4, 65.4, 95.4, 99.3, 93.8), (0.0, 0.0, 0.1, 0.1, -0.2), (-0.6, -1.1, 0.0, 0.1, -0.2)),
    "AllConv": ((85.0, 42.7, 94.5, 99.0, 92.6), (-0.9, -0.2, 0.1, -0.1, 0.1), (-3.1, -1.6, -1.9, -0.2, -0.4)),
    "ResNet-18": ((91.9, 66.2, 96.2, 99.4, 94.6), (-0.8, 2.6, 0.1, 0.0, -0.2), (-1.9, 1.5, -0.2, -0.1, -0.2)),
    "ResNeXt-29": ((92.9, 76.3, 96.2, 99.3, 94.5), (0.5, -2.1, -0.3, 0.0, -0.1), (0.8, -2.9, -0.7, 0.1, -0.3)),
    "MobileNetV2": ((93.1, 73.5, 96.1, 99.5, 93.5), (-0.3, -1.8, -0.1, -0.1, 0.2), (-1.7, -3.0, -0.1, -0.1, 0.4)),
}


def accuracies(network: str, dataset: str) -> dict[str, float]:
    """Return the accuracies in per cent by method, `Conv`, `-Lr` and `-LRr`; `{}` if the table has none."""
    if network not in ACCURACY or dataset not in DATASETS:
        return {}
    dense, full, low = (values[DATASETS.index(dataset)] for values in ACCURACY[network])
    return {"Conv": dense, "-Lr": round(dense + full, 1), "-LRr": round(dense + low, 1)}
