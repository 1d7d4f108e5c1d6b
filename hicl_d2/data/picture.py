"""Images that are resized no further than they are looked at.

A crop throws away most of an image that was made larger. What it keeps is known before a pixel is made: random
augmentations draw from an image's shape.
"""

from math import ceil, gcd
from typing import Any

import numpy as np
from PIL import Image

from hicl_d2.d2 import transforms as T
from hicl_d2.reading import image_size, open_image

# How far Pillow's filters reach, in pixels of the larger of source and result. Nearest is none: it finds its pixels by
# adding up steps from the first on.
REACH = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}


def resize_part(
    source: Image.Image, size: tuple[int, int], resample: int, rows: range, columns: range
) -> Image.Image:
    """Return ``rows`` and ``columns`` of ``source`` resized to ``size`` (height, width), equal to the whole's.

    The whole is made where Pillow would begin with the columns, as it does where the height shrinks by more than twice as
    much as the width: the two passes round in between, so that their order shows.
    """
    (height, width), (source_height, source_width) = size, (source.height, source.width)
    shrinks = source_height - height
    if size == (source_height, source_width):
        whole = source
    elif resample not in REACH or shrinks > max(0, 2 * (source_width - width)):
        whole = source.resize((width, height), resample)
    else:
        top, bottom = _aligned(rows, source_height, height)
        left, right = _aligned(columns, source_width, width)
        upper, lower = top * source_height // height, bottom * source_height // height
        reach = ceil(REACH[Image.Resampling(resample)] * max(1.0, source_height / height)) + 1
        first, last = max(0, upper - reach), min(source_height, lower + reach)
        box = left * source_width // width, 0, right * source_width // width, last - first
        strip = source.crop((0, first, source_width, last))
        strip = strip.resize((right - left, last - first), resample, box)
        box = 0, upper - first, right - left, lower - first
        whole = strip.resize((right - left, bottom - top), resample, box)
        rows, columns = _moved(rows, -top), _moved(columns, -left)
    box = columns.start, rows.start, columns.stop, rows.stop
    return whole if box == (0, 0, whole.width, whole.height) else whole.crop(box)


def _aligned(part: range, source_length: int, length: int) -> tuple[int, int]:
    """Return the ends of ``part`` moved outwards to pixels that begin where a pixel of the source does.

    Pillow takes a box in single precision: between the pixels of the source its weights would be others.
    """
    step = length // gcd(length, source_length)
    return part.start // step * step, -(-part.stop // step) * step


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)


class ReducedImage:
    """An image that is decoded for the size that it is resized to: a JPEG at a part of its own where that is enough."""

    def __init__(self, path: str) -> None:
        """Raises InputError for a file whose beginning shows that it cannot be used; the rest is seen when it is decoded."""
        self._path = path
        self.height, self.width = image_size(path)

    def decoded(self, at_least: tuple[int, int]) -> Image.Image:
        """Return the image in RGB, not below ``at_least`` (height, width) where it is not itself. Raises InputError."""
        return open_image(self._path, at_least)


class Picture:
    """An image that Pillow is to resize, as an array (H, W, 3), uint8, that is made when it is looked at.

    It knows its shape before. A slice of its rows and columns makes little more than that part; the pixels are
    those of the whole.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        source: Image.Image | ReducedImage,
        image_format: str,
        size: tuple[int, int] | None = None,
        resample: int = Image.Resampling.BILINEAR,
    ) -> None:
        """Stand for ``source`` (RGB) in ``image_format`` ("BGR" or "RGB"), resized to ``size`` (height, width)."""
        self.shape = (*(size or (source.height, source.width)), 3)
        self._source = source
        self._image_format = image_format
        self._resample = resample

    def resized(self, size: tuple[int, int], resample: int) -> "Picture":
        """Return this picture resized to ``size`` (height, width)."""
        is_whole = self.shape[:2] == (self._source.height, self._source.width)
        source = self._source if is_whole else self._part(slice(None), slice(None))
        return Picture(source, self._image_format, size, resample)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return what the whole array has there; of (rows, columns) no more is made."""
        if isinstance(index, tuple) and len(index) == 2 and all(map(_is_range, index)):
            return self._array(self._part(*index))
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array(self._part(slice(None), slice(None))).astype(dtype or self.dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        """Return what the array has of that name: its mean, say."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def _part(self, rows: slice, columns: slice) -> Image.Image:
        height, width, _ = self.shape
        kept = range(height)[rows], range(width)[columns]
        source = self._source
        if isinstance(source, ReducedImage):
            source = source.decoded((height, width))
        return resize_part(source, (height, width), self._resample, *kept)

    def _array(self, image: Image.Image) -> np.ndarray:
        """Return (h, w, 3) that keeps each channel in one piece, as models take it."""
        planes = np.empty((3, image.height, image.width), dtype=np.uint8)
        for plane, channel in zip(planes, self._image_format, strict=True):
            plane[:] = np.frombuffer(image.tobytes("raw", channel), dtype=np.uint8).reshape(plane.shape)
        return planes.transpose(1, 2, 0)


def _is_range(index: Any) -> bool:
    return isinstance(index, slice) and index.step in (None, 1)


class PictureInput:
    """What augmentations are given: an image that is made when one of them looks at its pixels, and a label map.

    Resizing puts off, cropping looks at a part; any other transform is given the whole array.
    """

    def __init__(self, picture: Picture, labels: np.ndarray | None) -> None:
        self.image: Picture | np.ndarray = picture
        self.boxes = None
        self.sem_seg = labels

    def transform(self, transform: T.Transform) -> None:
        """Apply ``transform`` to the image and the label map in place.

        Raises ValueError for a resize that leaves nothing, as of a strip whose long side is held short.
        """
        if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
            raise ValueError(f"{transform.new_h} x {transform.new_w} would be left")
        if isinstance(self.image, Picture) and isinstance(transform, T.ResizeTransform):
            self.image = self.image.resized((transform.new_h, transform.new_w), transform.interp)
        elif isinstance(transform, T.CropTransform):
            self.image = transform.apply_image(self.image)
        else:
            self.image = transform.apply_image(np.asarray(self.image))
        if self.sem_seg is not None:
            self.sem_seg = transform.apply_segmentation(self.sem_seg)
