"""The one reader of images and label maps; a file that cannot be used is named in one line.

Images become RGB of 8 bits, upright:

- 16 bits a channel are cut to their upper 8 (value // 256), grey as colours; 12-bit TIFFs likewise (value // 16).
- 32-bit and floating-point files, and colours that Pillow cannot turn into RGB, are refused: no scale is known.
- Alpha is dropped: colours are those of the file. Of several frames or pages, the first counts.
- The EXIF orientation is applied.

Label maps keep their numbers: those of grey files of 1, 2, 4, 8 and 16 bits and of int32 TIFFs, and the indices of palettes.
Lossy compression (JPEG, lossy WebP) is refused.

Orientation of a pair: the image is turned by its own tag, the label map by its own. A label map without a tag is taken to
be drawn on the upright image. Where height and width then differ by a quarter turn, the sizes decide: the label map's
own turn is undone, or it is turned as its image is.
"""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from hicl_d2.command.errors import InputError, counted
from hicl_d2.image_header import (
    EXIF_ORIENTATION,
    IMAGE_MODES,
    QUARTER_TURN,
    SIXTEEN_BITS,
    STORED,
    UPRIGHT,
    grey_bits,
    has_late_metadata,
    is_16_bits,
    is_white_zero,
    lossy_coding,
    orientation_of,
    tiff_tag,
)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
LABEL_SUFFIXES = IMAGE_SUFFIXES - LOSSY_SUFFIXES

# Everything that Pillow raises for a file that is missing, is no image, is cut off or is damaged.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    *(MemoryError, LookupError, TypeError, ArithmeticError, AttributeError, AssertionError, RuntimeError),
)
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


class _File(NamedTuple):
    """A decoded file.

    Attributes:
        image: the pixels, upright.
        orientation: by how it was turned, 1 for not at all.
        format: Pillow's name of the file format.
        bits: bits of a grey value where they are fewer than Pillow's mode has (2, 4, 12); 0 otherwise.
        white_is_zero: whether a TIFF counts grey from white down.
    """

    image: Image.Image
    orientation: int
    format: str
    bits: int
    white_is_zero: bool


def open_image(path: str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Return a decoded image in RGB, 8 bits, upright, by the rules at the top of this file.

    Where ``at_least`` (height, width) is given, a JPEG is decoded at the least of its eighth, quarter, half and whole size
    that is not smaller.

    Raises InputError with the path for a file that is missing, is no image, is cut off or has no 8-bit meaning.
    """
    file = _load(path, "image", at_least)
    image = file.image
    if image.mode == "RGB":
        return image
    try:
        if is_16_bits(image.mode, file.format):
            values = np.asarray(image).astype(np.uint16)
            grey = (values >> (4 if file.bits == 12 else 8)).astype(np.uint8)
            image = Image.fromarray(255 - grey if file.white_is_zero else grey)
        image.info.pop("transparency", None)  # Pillow would warn that it is dropped
        return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'image')}") from None


def read_image(path: str | Path, image_format: str) -> np.ndarray:
    """Return what :func:`open_image` does as an array (H, W, 3), uint8, in ``image_format``, "BGR" or "RGB"."""
    image = np.asarray(open_image(path))
    return image[:, :, ::-1] if image_format == "BGR" else image


def read_labels(
    path: str | Path,
    image: str | Path | None = None,
    size: tuple[int, int] | None = None,
    *,
    equal_channels: bool = False,
) -> np.ndarray:
    """Read a label map (H, W) of class numbers, uint8, or uint16 from a file of more than 8 bits.

    A palette image gives its indices, not its colours; 2 and 4 bits of grey give 0 to 3 and 0 to 15.

    Args:
        path: the label map.
        image: the image file that it belongs to, so that both are turned alike.
        size: height and width of that image, upright, where they are known.
        equal_channels: whether a file of colours counts as grey where red, green and blue are equal everywhere. Of WebP,
            which knows no grey, this holds anyway.

    Raises InputError with the path for a file that is missing, cannot be read, has several channels or is compressed
    with loss.
    """
    file = _load(path, "label map")
    turned = _as_its_image(file, image, size)
    grey = _equal_channels(turned) if equal_channels or file.format == "WEBP" else None
    if grey is not None:
        return grey
    if turned.mode not in ("1", "L", "P", "I", *SIXTEEN_BITS):
        raise InputError(
            f"{path}: a label map has one channel of 8 or 16 bits with class numbers, this one is {turned.mode}"
        )
    labels = np.asarray(turned)
    if turned.mode == "I":
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > 65535:
            raise InputError(
                f"{path}: label value {low if low < 0 else high} is no class number; they are 0 to 65535"
            )
    if turned.mode in ("I", *SIXTEEN_BITS):
        return labels.astype(np.uint16)
    if file.bits:
        return labels // np.uint8(255 // (2**file.bits - 1))  # Pillow stretches them to 0 to 255
    return labels.astype(np.uint8) if turned.mode == "1" else labels


def read_label_colours(path: str | Path, image: str | Path | None = None) -> np.ndarray:
    """Return the colours of a label map (H, W, 3), uint8, RGB, turned as its ``image`` file is.

    Raises InputError as :func:`read_labels`.
    """
    turned = _as_its_image(_load(path, "label map"), image, None)
    if turned.mode not in IMAGE_MODES or turned.mode in SIXTEEN_BITS:
        raise InputError(f"{path}: a label map of colours has 8 bits a channel, this one is {turned.mode}")
    turned.info.pop("transparency", None)
    return np.asarray(turned.convert("RGB"))


def palette_in_header(path: str | Path) -> np.ndarray | None:
    """Return the colours (N, 3), uint8, of a PNG's palette without decoding the file; None if it has none.

    Raises InputError with the path for a file that cannot be opened.
    """
    try:
        with _open(path) as image:
            palette = image.palette
            if image.mode != "P" or image.format != "PNG" or palette is None:
                return None
            return np.frombuffer(bytes(palette.palette), dtype=np.uint8).reshape(-1, 3)
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'label map')}") from None


def file_mode(path: str | Path) -> str:
    """Return Pillow's name for the pixels of a file: "L", "P", "I;16", "RGB".

    Raises InputError with the path for a file that cannot be opened.
    """
    try:
        with _open(path) as image:
            return image.mode
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, 'label map')}") from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the height and width of an image, upright, from the beginning of the file.

    Raises InputError with the path for what the beginning shows to be unusable already.
    """
    return _header(path, "image")[0]


def label_size(path: str | Path) -> tuple[int, int]:
    """Return the height and width of a label map, turned by its own tag, from the beginning of the file."""
    return _header(path, "label map")[0]


def _header(path: str | Path, kind: str) -> tuple[tuple[int, int], int]:
    """Return the upright height and width, and the orientation, of a file that is not decoded."""
    try:
        with _open(path) as image:
            if kind == "image":
                _check_mode(path, image)
            width, height = image.size
            if image.format == "TIFF":  # Pillow gives the upright size
                return (height, width), tiff_tag(image, EXIF_ORIENTATION, 1)
            orientation = orientation_of(image, decode=image.format == "PNG" and has_late_metadata(path))
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, kind)}") from None
    return ((width, height) if orientation >= QUARTER_TURN else (height, width)), orientation


def _load(path: str | Path, kind: str, at_least: tuple[int, int] | None = None) -> _File:
    """Decode a file. Raises InputError for one that cannot be used as a ``kind``, "image" or "label map"."""
    try:
        with _open(path) as image:
            if kind == "image":
                _check_mode(path, image)
            else:
                _check_coding(path, image)
            bits, white_is_zero = grey_bits(image), is_white_zero(image)
            orientation = tiff_tag(image, EXIF_ORIENTATION, 1)
            if at_least is not None and image.format in ("JPEG", "MPO"):
                height, width = at_least
                turned = orientation_of(image, decode=False) >= QUARTER_TURN
                image.draft(None, (height, width) if turned else (width, height))
            image.load()
            upright: Image.Image = image
            if image.format != "TIFF":  # Pillow turns TIFFs itself
                orientation = orientation_of(image, decode=True)
                upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
            return _File(upright, orientation, str(image.format), bits, white_is_zero)
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, kind)}") from None


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file; a pipe or a device, which would keep the reader waiting, is an OSError.

    Pillow is given a stream: of a path it would map some files into memory, where it turns TIFFs wrongly and where a file
    that is cut off meanwhile ends the process.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    with open(path, "rb") as stream, Image.open(stream) as image:
        yield image


def _check_mode(path: str | Path, image: Image.Image) -> None:
    if image.mode not in IMAGE_MODES and not is_16_bits(image.mode, str(image.format)):
        kinds = {"F": "floating-point values", "I": "32-bit or signed values"}
        kind = (
            f"{kinds[image.mode]}, of which no scale"
            if image.mode in kinds
            else f"colours of the mode {image.mode}, of which no way"
        )
        raise InputError(
            f"{path}: this image holds {kind} to 8-bit RGB is known; save it with 8 or 16 bits a channel"
        )


def _check_coding(path: str | Path, image: Image.Image) -> None:
    lossy = lossy_coding(path, image)
    if lossy:
        raise InputError(
            f"{path}: this label map is compressed with loss ({lossy}), which changes class numbers; save it as PNG"
        )
    if image.mode == "F":
        raise InputError(f"{path}: this label map holds floating-point values; save class numbers as PNG")
    if is_white_zero(image) and image.mode != "1":
        raise InputError(f"{path}: this label map counts from white down (WhiteIsZero); save it as PNG")


def _as_its_image(file: _File, image: str | Path | None, size: tuple[int, int] | None) -> Image.Image:
    """Return a label map turned as the image that it belongs to, where height and width show that it is not."""
    labels = file.image
    if image is None or labels.width == labels.height:
        return labels
    if size is None:
        size = image_size(image)
    if (labels.width, labels.height) != size:  # not the image's size after a quarter turn
        return labels
    if file.orientation >= QUARTER_TURN:
        return labels.transpose(STORED[file.orientation])
    orientation = _header(image, "image")[1]
    return labels.transpose(UPRIGHT[orientation]) if orientation >= QUARTER_TURN else labels


def _equal_channels(image: Image.Image) -> np.ndarray | None:
    """Return the grey values (H, W), uint8, of colours whose channels are all equal, without transparency; else None."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return None
    values = np.asarray(image)
    alpha = (
        values[..., 3:]
        if image.mode == "RGBA"
        else values[..., 1:]
        if image.mode == "LA"
        else values[..., :0]
    )
    grey = values[..., 0]
    channels = values[..., : 1 if image.mode == "LA" else 3]
    return grey.copy() if (alpha == 255).all() and (channels == grey[..., None]).all() else None


def check_labels(labels: np.ndarray, num_classes: int, ignore_value: int, path: str | Path) -> None:
    """Raise InputError with path and value if ``labels`` (H, W) holds what is neither class nor ignored."""
    wrong = (labels >= num_classes) & (labels != ignore_value)
    if wrong.any():
        values, counts = np.unique(labels[wrong], return_counts=True)
        more = f" and {counted(len(values) - 1, 'other value')}" if len(values) > 1 else ""
        raise InputError(
            f"{path}: label value {values[0]} ({counted(counts[0], 'pixel')}{more}) is outside the {num_classes} "
            f"classes, 0 to {num_classes - 1}, and is not the ignored value {ignore_value}"
            f"{value_hint(values.tolist(), num_classes, ignore_value)}"
        )


def value_hint(values: Iterable[int], num_classes: int, ignore_value: int) -> str:
    """Return what to do about label values that look as if classes counted from 1, or were masks of 0 and 255; "" otherwise.

    ``values`` are all that occur, or those that are wrong.
    """
    found = set(values)
    if num_classes in found and max(found - {ignore_value}) == num_classes:
        cure = f"IGNORE: 0 (0 is no class) or LABEL_VALUES: [1, ..., {num_classes}]"
        return f"; if classes count from 1 to {num_classes}, say so in DATASETS.CUSTOM: {cure}"
    if 255 in found and found <= {0, 255} and num_classes > 1:
        return "; if 255 is a class here, say so in DATASETS.CUSTOM: LABEL_VALUES: {0: name, 255: name}"
    return ""


def check_sizes(size: tuple[int, int], labels: np.ndarray, record: dict[str, Any]) -> None:
    """Raise InputError with both sizes if the image, of ``size`` (height, width), and the label map of a record differ."""
    if size != labels.shape:
        sizes = f"{size[0]} x {size[1]}", f"{labels.shape[0]} x {labels.shape[1]}"
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
    if isinstance(error, MemoryError):
        return f"this {kind} needs more memory than there is"
    return f"this {kind} cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
