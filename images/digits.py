"""The digits data set of scikit-learn; an example of a data set with one file and one entry in dataloaders.DATASETS."""

from pathlib import Path

import torch
import torch.nn.functional as F

from images.info import DataError, Split, one_line

CLASSES = tuple("0123456789")


def load(root: Path | None = None, download: bool = False) -> tuple[Split, Split]:
    """Return 1,438 training and 359 test images of 8x8 pixels and 17 grey values, resized to 3x32x32 and 256 values.

    The images have three channels, so that the paper's parameter counts for CIFAR-10 apply to the network. The split is
    stratified and does not depend on the seed. `root` and `download` are ignored.

    Raises:
        DataError: if scikit-learn cannot be imported.
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
