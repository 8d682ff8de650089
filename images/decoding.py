"""One image, in a file of its own or in a tar, decoded to RGB.

Pillow is imported by what decodes, so that a script that reads no image does not wait for it.
"""

import io
import os
from typing import TYPE_CHECKING

import numpy as np

from images.info import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# A place is where an image lies: the path of its file in bytes, or a record of these.
MEMBER = ("tar", "name", "offset", "size")  # path of the tar and name in there in bytes, where its data are, in bytes


def is_image(name: str) -> bool:
    """Return True for the name of a file that Pillow reads."""
    from PIL import Image

    suffix = os.path.splitext(name)[1].lower()
    return Image.registered_extensions().get(suffix) in Image.OPEN


def stored_bytes(place: bytes | np.void) -> int:
    """Return the size of an image as it is stored; 0 where there is none."""
    if isinstance(place, np.void):
        return int(place["size"])
    return os.path.getsize(place) if os.path.exists(place) else 0


def open_rgb(place: bytes | np.void) -> "Image":
    """Return the image at a place, of whatever mode, decoded to RGB.

    Raises:
        DataError: naming it, if it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(_file(place)) as image:
            if image.mode == "F":
                raise ValueError("floating-point values have no fixed range; save it with 8 or 16 bits")
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise DataError(f"cannot read the image {_name(place)} ({one_line(error)}): replace or remove it") from error


def _file(place):
    """What Pillow opens."""
    if not isinstance(place, np.void):
        return os.fsdecode(place)
    with open(place["tar"], "rb") as tar:
        tar.seek(place["offset"])
        return io.BytesIO(tar.read(place["size"]))


def _name(place):
    if isinstance(place, np.void):
        return f"{os.fsdecode(place['name'])} in {os.fsdecode(place['tar'])}"
    return os.fsdecode(place)
