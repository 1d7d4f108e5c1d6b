"""The check of an image's size, and the default augmentations of a config."""

from typing import Any

import numpy as np

from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.data import transforms as T


class SizeMismatchError(ValueError):
    """Raised for an image whose size is not the one in its record."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Raise SizeMismatchError if the image's size is not its record's; add the size to a record without one."""
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
