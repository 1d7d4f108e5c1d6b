"""The meta-architecture ``TransformersSegmentor``: any model of transformers for semantic segmentation, with its own loss.

SegFormer, UperNet, DPT, BEiT, MobileViT and whatever else ``AutoModelForSemanticSegmentation`` knows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.modeling import sem_seg_postprocess
from hicl_d2.d2.structures import ImageList

# Side of the blank image by which parameters that no loss depends on are found, in pixels.
PROBE_SIDE = 64
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
PREPROCESSING = "preprocessor_config.json"
# What transformers' configs call the label that their losses leave out.
IGNORE_KEYS = ("semantic_loss_ignore_index", "loss_ignore_index")


class TransformersSegmentor(nn.Module):
    """A segmentation model of transformers behind Detectron2's interface.

    Its parameters are ``model.*``. What lies below ``backbone_names`` is the backbone for SOLVER.BACKBONE_MULTIPLIER.
    Parameters that the loss does not depend on are frozen, so that DistributedDataParallel does not wait for them.
    """

    @configurable
    def __init__(
        self, *, model: nn.Module, ignore_value: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Keep ``model``, which takes ``pixel_values`` and ``labels`` and gives ``loss`` and ``logits``."""
        super().__init__()
        self.model: Any = model
        self.ignore_value = ignore_value
        self.backbone_names = ("backbone", self.model.base_model_prefix)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._freeze_what_is_unused()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the model of MODEL.TRANSFORMERS and return the arguments of the constructor."""
        return {
            "model": _build(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Return the device that the images are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return ``{"loss_sem_seg"}``, the model's own loss, in training, else one dictionary per image.

        Each input holds "image" (3, H, W) with values 0..255, in training "sem_seg" (H, W) with class ids and the
        ignore value, and in testing the "height" and "width" of the output (default: the image's). Each output holds
        "sem_seg", logits (K, height, width).
        """
        divisor = self._divisor()
        images = ImageList.from_tensors(
            [(entry["image"].to(self.device) - self.pixel_mean) / self.pixel_std for entry in batched_inputs],
            divisor,
        )
        if self.training:
            maps = [entry["sem_seg"].to(self.device).long() for entry in batched_inputs]
            labels = ImageList.from_tensors(maps, divisor, self.ignore_value).tensor
            return {"loss_sem_seg": self._run(images.tensor, labels).loss}
        logits = self._run(images.tensor, None).logits
        logits = F.interpolate(logits, images.tensor.shape[-2:], mode="bilinear", align_corners=False)
        return [
            {
                "sem_seg": sem_seg_postprocess(
                    each, size, entry.get("height", size[0]), entry.get("width", size[1])
                )
            }
            for each, entry, size in zip(logits, batched_inputs, images.image_sizes, strict=True)
        ]

    def read_folder(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights of a Hugging Face folder under this model's names, without those of other classes.

        The folder may hold the encoder alone, or a model for another number of classes.
        """
        options: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        with torch.random.fork_rng(devices=[]):
            model, report = type(self.model).from_pretrained(
                str(folder), config=self.model.config, local_files_only=True, **options
            )
        # These transformers has drawn at random.
        absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        return {f"model.{name}": value for name, value in model.state_dict().items() if name not in absent}

    def _freeze_what_is_unused(self) -> None:
        was_training = self.training
        self.eval()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            self._probe_loss().backward()
        self.train(was_training)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def _probe_loss(self) -> Tensor:
        """Return the loss of a blank image: a small one, or one of the only size that the model takes."""
        fixed = getattr(self.model.config, "image_size", None)
        small = -(-PROBE_SIDE // self._divisor()) * self._divisor()
        for side in (small, fixed):
            labels = torch.zeros(1, side, side, dtype=torch.long)
            try:
                loss: Tensor = self.model(pixel_values=torch.zeros(1, 3, side, side), labels=labels).loss
                return loss
            except (RuntimeError, ValueError):
                if side == fixed or fixed is None:
                    raise
        raise AssertionError("unreachable")

    def _divisor(self) -> int:
        """Return what height and width of the batch are padded to a multiple of: the side of a patch."""
        patch = getattr(self.model.config, "patch_size", 1)
        return patch if isinstance(patch, int) else 1

    def _run(self, images: Tensor, labels: Tensor | None) -> Any:
        side = getattr(self.model.config, "image_size", None)
        try:
            return self.model(pixel_values=images, labels=labels)
        except (RuntimeError, ValueError) as error:
            height, width = images.shape[-2:]
            if side is None or (height, width) == (side, side) or "out of memory" in str(error):
                raise
            raise InputError(
                f"{self.model.config.model_type} here takes images of {side} x {side} pixels, not {height} x {width}: set "
                f"INPUT.CROP.SIZE and TEST.WINDOW to ({side}, {side}), or MODEL.TRANSFORMERS.SETTINGS.image_size"
            ) from error


def check_transformers_segmentor(cfg: CfgNode) -> None:
    """Raise InputError for a type, a setting or a normalisation that the model of MODEL.TRANSFORMERS does not have."""
    make_config(cfg)
    for folder in (cfg.MODEL.TRANSFORMERS.NAME, cfg.MODEL.WEIGHTS):
        if folder and (Path(folder) / PREPROCESSING).is_file():
            _check_images(cfg, Path(folder))


def make_config(cfg: CfgNode) -> Any:
    """Return transformers' config of MODEL.TRANSFORMERS, for the classes and the ignore value of the head."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    settings, head = cfg.MODEL.TRANSFORMERS, cfg.MODEL.SEM_SEG_HEAD
    known = sorted(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    own = {key: _plain(value) for key, value in settings.SETTINGS.items()}
    if isinstance(own.get("backbone_config"), dict):
        inner = dict(own["backbone_config"])
        own["backbone_config"] = AutoConfig.for_model(inner.pop("model_type", ""), **inner)
    try:
        if Path(settings.NAME).is_dir():
            config = AutoConfig.from_pretrained(settings.NAME, local_files_only=True, **own)
        elif settings.NAME in known:
            config = AutoConfig.for_model(settings.NAME, **own)
        else:
            raise InputError(
                f"MODEL.TRANSFORMERS.NAME is {settings.NAME!r}{nearest(settings.NAME, known)}; it must be a folder or "
                f"one of {listing(known, 40)}"
            )
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"MODEL.TRANSFORMERS: {settings.NAME} cannot be configured: {one_line(error)[:300]}"
        ) from None
    if config.model_type not in known:
        raise InputError(
            f"MODEL.TRANSFORMERS.NAME: {settings.NAME} holds a {config.model_type}, which transformers has no semantic "
            f"segmentation for; it has {listing(known, 40)}"
        )
    unknown = [key for key in own if key not in type(config)().to_dict() and key != "backbone_config"]
    if unknown:
        hint = nearest(unknown[0], type(config)().to_dict())
        raise InputError(f"MODEL.TRANSFORMERS.SETTINGS: {settings.NAME} has no {unknown[0]}{hint}")
    if len(config.id2label) != head.NUM_CLASSES:
        config.num_labels = head.NUM_CLASSES
    for key in IGNORE_KEYS:
        if hasattr(config, key):
            setattr(config, key, head.IGNORE_VALUE)
    return config


def _build(cfg: CfgNode) -> nn.Module:
    """Build the model: with the weights of MODEL.TRANSFORMERS.NAME where that is a folder which holds some, else at random."""
    from transformers import AutoModelForSemanticSegmentation

    config, folder = make_config(cfg), Path(cfg.MODEL.TRANSFORMERS.NAME)
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in WEIGHT_FILES):
            return AutoModelForSemanticSegmentation.from_pretrained(
                str(folder), config=config, local_files_only=True, ignore_mismatched_sizes=True
            )
        return AutoModelForSemanticSegmentation.from_config(config)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"MODEL.TRANSFORMERS: {folder} cannot be built: {one_line(error)[:300]}") from error


def _check_images(cfg: CfgNode, folder: Path) -> None:
    """Raise InputError if images are not prepared as the folder's processor prepares them."""
    try:
        said = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
        scale = 1.0 / said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
        normalises = said.get("do_normalize", "image_mean" in said)
        mean = [scale * value for value in said["image_mean"]] if normalises else [0.0] * 3
        deviation = [scale * value for value in said["image_std"]] if normalises else [scale] * 3
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{folder / PREPROCESSING} cannot be read: {one_line(error)}") from None
    order = "BGR" if said.get("do_flip_channel_order") else "RGB"
    if order != cfg.INPUT.FORMAT:
        raise InputError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; {folder} was trained with {order}")
    for key, found, wanted in (
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, mean),
        ("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, deviation),
    ):
        if len(found) != len(wanted) or any(abs(a - b) > 0.5 for a, b in zip(found, wanted, strict=True)):
            rounded = [round(value, 3) for value in wanted]
            raise InputError(f"{key} is {list(found)}, but {folder} was trained with {rounded}; set it so")


def _plain(value: Any) -> Any:
    if isinstance(value, CfgNode | dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value
