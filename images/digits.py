"""scikit-learn's bundled digits; an example of a data set in one file, with one line in dataloaders.DATASETS."""

from pathlib import Path

import torch
import torch.nn.functional as F

from images.info import DataError, Split, one_line

CLASSES = tuple("0123456789")


def load(root: Path | None = None, download: bool = False) -> tuple[Split, Split]:
    """Return 1,438 training and 359 test images, 8x8 with 17 grey values, enlarged to 3x32x32 with 256.

    They have three channels, so that the network is the one whose counts the paper gives for CIFAR-10. The split is
    stratified and does not depend on the seed.

    Args:
        root, download: of `DataSet.load`; the digits need neither.

    Raises:
        DataError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except Exception as error:
        raise DataError(f"digits needs scikit-learn ({one_line(error)}): pip install scikit-learn") from error
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) * (255 / 16)  # (N, 1, 8, 8)
    images = F.interpolate(images, size=(32, 32), mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(1797), train_size=1438, random_state=0, stratify=digits.target)
    return (images[train], labels[train]), (images[test], labels[test])
