"""Images in tar files, in the layout of WebDataset, listed so that each is read by itself.

    root/train/*.tar  and  root/test/*.tar  (or root/val/*.tar)

An image `<key>.jpg`, or of another format, lies beside `<key>.cls`, the number of its class; all else is passed over.
The headers of all tars are looked through once in a process, and an image is then read from where it lies. WebDataset
itself is not used: it reads a tar from its beginning to its end and shuffles what it holds in hand, so that the order
of an epoch hangs on the number of workers, and no run could go on within one.
"""

import os
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from images.decoding import MEMBER, is_image
from images.info import DataError, Listing, one_line


def tars_in(folder: Path) -> list[Path]:
    """Return the tar files in a folder, sorted by name."""
    return sorted(path for path in folder.glob("*.tar") if path.name[0] != ".")


def list_tars(tars: Sequence[Path]) -> Listing:
    """List the images of tars, one tar after the other, in the order in which they lie there.

    Returns:
        `(places, labels)`.

    Raises:
        DataError: for a tar that is damaged or holds no image, and for an image without a class.
    """
    listed = [_look_through(tar, tar.stat().st_mtime_ns) for tar in tars]
    *place, labels = (np.concatenate(column) for column in zip(*listed, strict=True))
    return np.rec.fromarrays(place, names=MEMBER), torch.from_numpy(labels)


def classes_of(tars: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of the classes in the training tars: their numbers, up to the largest."""
    return tuple(map(str, range(int(list_tars(tars)[1].max()) + 1)))


@cache
def _look_through(path, _):
    """Columns of a tar's images: those of MEMBER, and labels. Kept for as long as the tar is not changed."""
    images, labels = {}, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, name = os.path.split(member.name)
                key, _, suffix = name.partition(".")
                if member.isfile() and suffix == "cls":
                    labels[folder, key] = _number(tar.extractfile(member).read(), member.name)
                elif member.isfile() and "." not in suffix and is_image(name):
                    images[folder, key] = os.fsencode(member.name), member.offset_data, member.size
                tar.members = []  # which it would keep for looking up names
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"cannot read the tar {path} ({one_line(error)}): replace or remove it") from error
    if not images:
        raise DataError(f"no images in the tar {path}: it should hold <key>.jpg beside <key>.cls, the class's number")
    if without := images.keys() - labels.keys():
        name = os.fsdecode(images[min(without)][0])
        raise DataError(f"{name} in the tar {path} has no .cls beside it, the number of its class: add it there")
    names, offsets, sizes = (np.array(column) for column in zip(*images.values(), strict=True))
    tars = np.full(len(images), os.fsencode(path))
    return tars, names, offsets, sizes, np.array([labels[key] for key in images])


def _number(content, name):
    if not content.strip().isdigit():
        raise ValueError(f"{name} does not hold the number of a class")
    return int(content)
