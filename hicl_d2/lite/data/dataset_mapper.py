"""From a record to the tensors that a model takes."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.config import CfgNode, configurable
from hicl_d2.lite.data import detection_utils as utils
from hicl_d2.lite.data import transforms as T

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Read an image and its label map, augment both alike, and return them as tensors.

    A record has ``file_name`` and, where there is truth, ``sem_seg_file_name``; the result has ``image``
    (C, H, W), uint8, and ``sem_seg`` (H, W), int64, beside what else the record holds.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: Sequence[T.Augmentation | T.Transform], image_format: str
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logger.info("[DatasetMapper] Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments that ``cfg`` stands for: an optional random crop, then resize and flip."""
        augmentations = utils.build_augmentation(cfg, is_train)
        if cfg.INPUT.CROP.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {"is_train": is_train, "augmentations": augmentations, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the mapped copy of one record."""
        mapped = copy.deepcopy(dataset_dict)
        if mapped.pop("annotations", None) is not None and self.is_train:
            raise NotImplementedError(needs_detectron2("training on instance annotations"))
        image = utils.read_image(mapped["file_name"], format=self.image_format)
        utils.check_image_size(mapped, image)
        label_file = mapped.pop("sem_seg_file_name", None)
        labels = None if label_file is None else utils.read_image(label_file, "L").squeeze(2)

        inputs = T.AugInput(image, sem_seg=labels)
        self.augmentations(inputs)
        mapped["image"] = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        if inputs.sem_seg is not None:
            mapped["sem_seg"] = torch.as_tensor(inputs.sem_seg.astype(np.int64))
        return mapped
