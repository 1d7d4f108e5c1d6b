"""A mapper written as plainly as can be, to hold the project's to where Detectron2's is not installed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from hicl_d2.d2 import transforms as T


def read_plainly(path: str, image_format: str) -> np.ndarray:
    """Return the image (H, W, 3) upright in "BGR" or "RGB"."""
    with Image.open(path) as image:
        array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return array[:, :, ::-1] if image_format == "BGR" else array


class PlainMapper:
    """Detectron2's DatasetMapper for semantic segmentation, with its signature."""

    def __init__(self, is_train: bool, *, augmentations: Sequence[Any], image_format: str) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        with Image.open(record["sem_seg_file_name"]) as label_map:
            labels = np.asarray(label_map)
        inputs = T.AugInput(read_plainly(record["file_name"], self.image_format), sem_seg=labels)
        height, width = inputs.image.shape[:2]
        self.augmentations(inputs)
        mapped = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        mapped |= {"height": height, "width": width}
        mapped["image"] = torch.from_numpy(np.array(inputs.image.transpose(2, 0, 1)))
        mapped["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return mapped
