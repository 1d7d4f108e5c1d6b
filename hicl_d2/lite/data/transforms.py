"""Transforms, and augmentations, which draw a transform at random; import as ``transforms as T``.

Augmentations draw from numpy's global state in Detectron2's order: the same seed gives the same transform.
"""

import inspect
import pprint
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "CropTransform",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomFlip",
    "ResizeShortestEdge",
    "ResizeTransform",
    "Transform",
]

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
CROP_ATTEMPTS = 10


class AugInput:
    """An image (H, W) or (H, W, C), uint8 or float, with its boxes (N, 4) and label map (H, W), if any."""

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        assert isinstance(image, np.ndarray), f"an image is a numpy array, not a {type(image)}"
        assert image.ndim in (2, 3), f"an image is (H, W) or (H, W, C), not {image.shape}"
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply ``tfm`` to every attribute in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


class Augmentation:
    """Base class of random transforms; a subclass defines ``get_transform``, which draws one.

    Its parameters are named after the attributes of the input that it needs (``image``, ``sem_seg``). A single parameter
    gets the image, whatever its name.
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform drawn for these attributes."""
        raise NotImplementedError

    def __call__(self, aug_input: Any) -> Transform:
        """Transform ``aug_input`` in place and return the transform that was drawn."""
        if self.input_args is None:
            names = tuple(inspect.signature(self.get_transform).parameters)
            self.input_args = ("image",) if len(names) == 1 else names
        transform = self.get_transform(*[getattr(aug_input, name) for name in self.input_args])
        assert isinstance(transform, Transform), f"{type(self).__name__} drew no transform, but {transform!r}"
        aug_input.transform(transform)
        return transform

    def __repr__(self) -> str:
        """Return the constructor's call, without the arguments that have their default value."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"


class _Fixed(Augmentation):
    """An augmentation that always gives the same transform."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def get_transform(self, *args: Any) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


class AugmentationList(Augmentation):
    """Augmentations or transforms, applied one after another."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [aug if isinstance(aug, Augmentation) else _Fixed(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"


class ResizeTransform(Transform):
    """Resize images (h, w) to (new_h, new_w) with one of Pillow's filters, label maps with nearest-neighbour interpolation.

    Pillow resizes uint8 images, torch arrays of other types.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        interp = BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image (h, w) or (h, w, C)."""
        assert img.shape[:2] == (self.h, self.w), f"expected an image of {self.h} x {self.w}, not {img.shape}"
        method = Image.Resampling(self.interp if interp is None else interp)
        if img.dtype != np.uint8:
            return self._resize_in_torch(img, method.name.lower())
        one_channel = img.ndim == 3 and img.shape[2] == 1
        picture = Image.fromarray(img[:, :, 0] if one_channel else img)
        resized = np.asarray(picture.resize((self.new_w, self.new_h), method))
        return resized[:, :, None] if one_channel else resized

    def _resize_in_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        channels_first = np.ascontiguousarray(img.reshape(self.h, self.w, -1).transpose(2, 0, 1))
        align_corners = None if mode == "nearest" else False
        size = (self.new_h, self.new_w)
        resized = F.interpolate(
            torch.from_numpy(channels_first)[None], size, mode=mode, align_corners=align_corners
        )
        return resized[0].permute(1, 2, 0).reshape(*size, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points (N, 2), each (x, y), in place."""
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label map (h, w) with nearest-neighbour interpolation."""
        return self.apply_image(segmentation, interp=NEAREST)


class RandomFlip(Augmentation):
    """Flip horizontally or vertically (one of the two) with probability ``prob``."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError("RandomFlip flips either horizontally or vertically; for both, use two of them")
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the flip, or none."""
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


class ResizeShortestEdge(Augmentation):
    """Resize the short side to a randomly drawn length, or to less where the long side would exceed ``max_size``.

    ``short_edge_length`` is a [low, high] range (``sample_style`` "range") or the lengths to choose from
    ("choice"). A drawn length of 0 leaves the image as it is.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        assert sample_style in ("range", "choice"), f"sample_style is range or choice, not {sample_style}"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        assert not self.is_range or len(short_edge_length) == 2, f"a range has two ends: {short_edge_length}"
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a length and return the resize to it."""
        height, width = image.shape[:2]
        if self.is_range:
            length = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            length = np.random.choice(self.short_edge_length)
        if length == 0:
            return NoOpTransform()
        size = self.get_output_shape(height, width, length, self.max_size)
        return ResizeTransform(height, width, *size, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return (h, w) after the resize, rounded half up."""
        short = float(short_edge_length)
        scale = short / min(oldh, oldw)
        # The short side is set, not computed: scale times its old length could differ by a rounding error.
        height, width = (short, scale * oldw) if oldh < oldw else (scale * oldh, short)
        if max(height, width) > max_size:
            shrink = float(max_size) / max(height, width)
            height, width = height * shrink, width * shrink
        return int(height + 0.5), int(width + 0.5)


class RandomCrop(Augmentation):
    """Crop a rectangle at a random place.

    ``crop_type`` defines ``crop_size``: "absolute", (h, w) in pixels, at most the image; "relative", fractions of the
    image's height and width; "relative_range", the smallest such fractions; "absolute_range", the smallest and the
    largest length in pixels of either side.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        assert crop_type in CROP_TYPES, f"crop_type is one of {', '.join(CROP_TYPES)}, not {crop_type}"
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a size and a place and return the crop."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        y0 = np.random.randint(height - crop_height + 1)
        x0 = np.random.randint(width - crop_width + 1)
        return CropTransform(x0, y0, crop_width, crop_height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) of a crop of an image of (h, w); the range types draw it."""
        height, width = image_size
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), height), min(int(self.crop_size[1]), width)
        if self.crop_type == "absolute_range":
            low, high = int(self.crop_size[0]), int(self.crop_size[1])
            crop_height = np.random.randint(min(height, low), min(height, high) + 1)
            return crop_height, np.random.randint(min(width, low), min(width, high) + 1)
        shares = np.asarray(self.crop_size)
        if self.crop_type == "relative_range":
            shares = shares.astype(np.float32)
            shares = shares + np.random.rand(2) * (1 - shares)
        return int(height * shares[0] + 0.5), int(width * shares[1] + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):  # noqa: N801 - Detectron2's name
    """RandomCrop that is drawn again, up to ten times in all, while one class covers too much of the crop.

    A crop is accepted if it has at least two classes and each covers less than ``single_category_max_area`` of its
    pixels, not counting those of ``ignored_category``. 1.0 accepts every crop.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """Return the first crop that is accepted, or the last one drawn."""
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(CROP_ATTEMPTS):
            crop = self.crop_aug.get_transform(sem_seg)
            classes, counts = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            if self.ignored_category is not None:
                counts = counts[classes != self.ignored_category]
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return crop
