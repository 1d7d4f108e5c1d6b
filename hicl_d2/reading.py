"""Reading images and label maps, with one line about what is wrong with a file that cannot be used."""

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hicl_d2.command.errors import InputError

# Everything that Pillow raises for a file that is missing, is no image, is cut off or is damaged.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
EXIF_ORIENTATION = 0x0112
# How an image with that orientation is brought upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Environment variable: the most pixels that an image may have. A damaged or hostile file can claim any number.
LIMIT = "HICL_MAX_IMAGE_PIXELS"
DEFAULT_LIMIT = 2**28


def _set_limit() -> int:
    """Tell Pillow the limit: it refuses above twice its own, and warns from there on."""
    text = os.environ.get(LIMIT, "")
    try:
        limit = int(text) if text else DEFAULT_LIMIT
    except ValueError:
        raise InputError(f"{LIMIT} is {text!r}; it must be a number of pixels") from None
    Image.MAX_IMAGE_PIXELS = max(limit // 2, 1)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return limit


MAX_PIXELS = _set_limit()


def open_image(path: str | Path) -> Image.Image:
    """Return a decoded image in RGB, 8 bits, upright.

    Raises InputError with the path for a file that is missing, is no image or is cut off.
    """
    try:
        with Image.open(path) as image:
            image.load()
            orientation = _orientation(image)
            upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
            return upright if upright.mode == "RGB" else upright.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'image')}") from None


def read_image(path: str | Path, image_format: str) -> np.ndarray:
    """Return what :func:`open_image` does as an array (H, W, 3), uint8, in ``image_format``, "BGR" or "RGB"."""
    image = np.asarray(open_image(path))
    return image[:, :, ::-1] if image_format == "BGR" else image


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map (H, W) of class numbers, uint8, or uint16 from a 16-bit file.

    A palette image gives its indices, not its colours. Raises InputError with the path for a file that is
    missing, cannot be read or has several channels.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P", "I;16"):
                raise InputError(
                    f"{path}: a label map has one channel of 8 or 16 bits with class numbers, this one is "
                    f"{image.mode}"
                )
            return np.asarray(image)
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'label map')}") from None


def label_mode(path: str | Path) -> str:
    """Return Pillow's name for the pixels of a label file that can be read: "L", "P" or "I;16"."""
    with Image.open(path) as image:
        return image.mode


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the height and width of an image, upright, from the beginning of the file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = _orientation(image) >= 5
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'image')}") from None
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:  # asking further would decode a whole PNG
        return 1
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # EXIF data can be broken in any way, and the image still be good
        return 1


def check_labels(labels: np.ndarray, num_classes: int, ignore_value: int, path: str | Path) -> None:
    """Raise InputError with path and value if ``labels`` (H, W) holds what is neither class nor ignored."""
    wrong = (labels >= num_classes) & (labels != ignore_value)
    if wrong.any():
        values, counts = np.unique(labels[wrong], return_counts=True)
        more = f" and {len(values) - 1} other values" if len(values) > 1 else ""
        raise InputError(
            f"{path}: label value {values[0]} ({counts[0]} pixels{more}) is outside the {num_classes} "
            f"classes, 0 to {num_classes - 1}, and is not the ignored value {ignore_value}"
        )


def check_sizes(image: Image.Image, labels: np.ndarray, record: dict[str, Any]) -> None:
    """Raise InputError with both sizes if the image and the label map of a record differ in size."""
    if (image.height, image.width) != labels.shape:
        sizes = f"{image.height} x {image.width}", f"{labels.shape[0]} x {labels.shape[1]}"
        raise InputError(
            f"{record['file_name']} is {sizes[0]}, but its label map {record['sem_seg_file_name']} is "
            f"{sizes[1]}; height and width must agree"
        )


def _reason(error: BaseException, kind: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"this {kind} does not exist"
    if isinstance(error, UnidentifiedImageError):
        return f"this {kind} is in no format that Pillow knows; the file is damaged or is no image"
    if isinstance(error, Image.DecompressionBombError):
        return f"this {kind} has more than {MAX_PIXELS:,} pixels; raise {LIMIT} if it is meant to"
    return f"this {kind} cannot be read: {' '.join(str(error).split())}"
