"""Reading images, and the default augmentations of a config."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.data import transforms as T
from hicl_d2.lite.utils.file_io import PathManager

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


class SizeMismatchError(ValueError):
    """Raised where an image does not have the size that its record gives."""


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image (H, W, C), uint8, upright if its EXIF data say how, in one of Pillow's modes or "BGR".

    Without ``format`` the file's own mode stays, and one channel gives (H, W).
    """
    with PathManager.open(file_name, "rb") as file:
        return convert_PIL_to_numpy(_upright(Image.open(file)), format)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # EXIF data can be broken in any way, and the image still be good
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:  # noqa: N802 - Detectron2's name
    """Return a Pillow image as an array in the given format; see :func:`read_image`."""
    if format is None:
        return np.asarray(image)
    array = np.asarray(image.convert("RGB" if format == "BGR" else format))
    if format == "BGR":
        return array[:, :, ::-1]
    return array[:, :, None] if format == "L" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Return an image (H, W, C) in "BGR", "RGB" or "L" as RGB in [0, 255]."""
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return array[:, :, ::-1]
    return np.asarray(Image.fromarray(array.astype(np.uint8).squeeze()).convert("RGB"))


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Raise SizeMismatchError unless the image has its record's size; a record without one is given it."""
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height)
    if expected != (width, height):
        name = dataset_dict.get("file_name", "an image")
        raise SizeMismatchError(f"{name} is {width} wide and {height} high, but its record says {expected}")


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Return the resize of ``cfg`` and, in training, its flip."""
    inputs = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING)
    ]
    flip = inputs.RANDOM_FLIP
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gen = build_augmentation

__getattr__ = beyond_lite(
    __name__,
    "annotations_to_instances annotations_to_instances_rotated check_metadata_consistency "
    "create_keypoint_hflip_indices filter_empty_instances transform_instance_annotations transform_proposals",
)
