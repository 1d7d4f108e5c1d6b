"""From a record to the tensors that a semantic model takes."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hicl_d2.command.errors import InputError, one_line
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.data import detection_utils
from hicl_d2.d2.projects import panoptic_deeplab_mapper
from hicl_d2.data.color import ColorAugSSDTransform
from hicl_d2.data.picture import Picture, PictureInput, ReducedImage
from hicl_d2.modeling.settings import base_architecture
from hicl_d2.reading import check_labels, check_sizes, open_image, read_labels

# What an image is padded with to the size of the crop: as in Mask2Former, a middle grey.
PAD_VALUE = 128

# An image, or what it will be decoded from, and its label map (H, W).
Decoded = tuple[Image.Image | ReducedImage, np.ndarray | None]

logger = logging.getLogger(__name__)


class SemanticMapper:
    """Read an image and its label map, check them, augment both alike, and return them as tensors.

    The result is that of Detectron2's DatasetMapper with the same augmentations: ``image`` (3, H, W), uint8,
    and ``sem_seg`` (H, W), int64, with the record's other entries. With ``pad_to`` (h, w), what is smaller is
    padded at the right and at the bottom, labels with ``ignore_value``. Raises InputError for files that
    cannot be used.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_value: int = 255,
        pad_to: tuple[int, int] | None = None,
        keep_decoded: bool = False,
        reduced_decoding: bool = False,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.pad_to = pad_to
        self._decoded: dict[tuple[Any, Any], Decoded] | None = {} if keep_decoded else None
        self._open: Callable[[str], Image.Image | ReducedImage] = (
            ReducedImage if reduced_decoding else open_image
        )
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments that ``cfg`` stands for: resize and, in training, crop, colour and flip."""
        crop = cfg.INPUT.CROP
        fixed_size = is_train and crop.ENABLED and crop.TYPE == "absolute"
        side = cfg.INPUT.get("SIZE_DIVISIBILITY", -1) if is_train else -1
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "pad_to": (side, side) if side > 0 else tuple(crop.SIZE) if fixed_size else None,
            "keep_decoded": is_train and cfg.DATALOADER.KEEP_DECODED,
            "reduced_decoding": is_train and cfg.INPUT.REDUCED_DECODING,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the mapped copy of one record."""
        record = dict(record)
        return self.transform(record, *self.read(record))

    def transform(
        self, record: dict[str, Any], image: Image.Image | ReducedImage, labels: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return the mapped copy of one record whose image and label map are decoded already.

        Raises InputError with the image's name for a size that an augmentation makes nothing of, or a file that turns out to
        be damaged as it is decoded.
        """
        inputs = PictureInput(Picture(image, self.image_format), labels)
        try:
            self.augmentations(inputs)
            planes, labels = np.asarray(inputs.image).transpose(2, 0, 1), inputs.sem_seg
        except (ValueError, ArithmeticError) as error:
            raise InputError(
                f"{record['file_name']}: an image of {image.height} x {image.width} cannot be resized or cropped as INPUT "
                f"says ({one_line(error)})"
            ) from error
        if not planes.size:
            raise InputError(
                f"{record['file_name']}: nothing is left of an image of {image.height} x {image.width} after resizing and "
                "cropping as INPUT says"
            )
        mapped = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        mapped["image"] = torch.as_tensor(in_order(self._pad(planes, PAD_VALUE)))
        if labels is not None:
            mapped["sem_seg"] = torch.as_tensor(self._pad(labels, self.ignore_value).astype(np.int64))
        return mapped

    def read(self, record: dict[str, Any]) -> Decoded:
        """Return what :meth:`decode` does, from memory where decoded files are kept and it has been asked before."""
        if self._decoded is None:
            return self.decode(record)
        files = record["file_name"], record.get("sem_seg_file_name")
        if files not in self._decoded:
            self._decoded[files] = self.decode(record)
        image, labels = self._decoded[files]
        record.setdefault("height", image.height)
        record.setdefault("width", image.width)
        return image, labels

    def decode(self, record: dict[str, Any]) -> Decoded:
        """Return the image in RGB, and label map (H, W), if the record has one, after checking both.

        A record without ``height`` and ``width`` is given those of its image.
        """
        image = self._open(record["file_name"])
        try:
            detection_utils.check_image_size(record, Picture(image, self.image_format))
        except detection_utils.SizeMismatchError as error:
            raise InputError(str(error)) from None
        if "sem_seg_file_name" not in record:
            return image, None
        size = image.height, image.width
        labels = read_labels(record["sem_seg_file_name"], record["file_name"], size)
        check_sizes(size, labels, record)
        check_labels(labels, self.num_classes, self.ignore_value, record["sem_seg_file_name"])
        if labels.dtype != np.uint8:
            # Transforms know 8-bit images and floating point; float32 holds every class number exactly.
            labels = labels.astype(np.uint8 if max(self.num_classes, self.ignore_value) < 256 else np.float32)
        return image, labels

    def _pad(self, array: np.ndarray, value: int) -> np.ndarray:
        """Pad the last two axes, height and width."""
        if self.pad_to is None:
            return array
        missing = [max(wanted - size, 0) for wanted, size in zip(self.pad_to, array.shape[-2:], strict=True)]
        if not any(missing):
            return array
        widths = [(0, 0)] * (array.ndim - 2) + [(0, count) for count in missing]
        return np.pad(array, widths, constant_values=value)


def in_order(array: np.ndarray) -> np.ndarray:
    """Return ``array`` with its elements in order in memory, as torch takes it.

    A flipped array of one column counts as in order for numpy, though its stride is negative.
    """
    return array.copy() if min(array.strides) < 0 else np.ascontiguousarray(array)


def build_train_mapper(cfg: CfgNode) -> Any:
    """Return the mapper that a model trains with on semantic data: Detectron2's for its Panoptic-DeepLab, else ours."""
    is_panoptic_deeplab = base_architecture(cfg) == "PanopticDeepLab"
    return panoptic_deeplab_mapper(cfg) if is_panoptic_deeplab else SemanticMapper(cfg, True)


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
    """Return the augmentations of ``cfg`` in the order of DeepLab and Mask2Former."""
    flip: list[T.Augmentation]
    resize, *flip = detection_utils.build_augmentation(cfg, is_train)
    augmentations: list[T.Augmentation | T.Transform] = [resize]
    if is_train and cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            )
        )
    if is_train and cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(cfg.INPUT.FORMAT))
    return augmentations + flip
