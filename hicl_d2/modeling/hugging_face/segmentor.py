"""The meta-architecture ``TransformersSegmentor``: any model of transformers for semantic segmentation, with its own loss.

SegFormer, UperNet, DPT, BEiT, MobileViT and whatever else ``AutoModelForSemanticSegmentation`` knows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.modeling import sem_seg_postprocess
from hicl_d2.d2.structures import ImageList
from hicl_d2.modeling.hugging_face.config import build_segmentation_model

# Side of the blank image by which parameters that no loss depends on are found, in pixels.
PROBE_SIDE = 64


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
            "model": build_segmentation_model(cfg),
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
            [
                (entry["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
                for entry in batched_inputs
            ],
            divisor,
        )
        if self.training:
            maps = [entry["sem_seg"].to(self.device, non_blocking=True).long() for entry in batched_inputs]
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
        small, fixed = -(-PROBE_SIDE // self._divisor()) * self._divisor(), self._fixed_side()
        try:
            return self._blank_loss(small)
        except (RuntimeError, ValueError):
            if fixed in (None, small):
                raise
            return self._blank_loss(fixed)

    def _blank_loss(self, side: int) -> Tensor:
        labels = torch.zeros(1, side, side, dtype=torch.long)
        loss: Tensor = self.model(pixel_values=torch.zeros(1, 3, side, side), labels=labels).loss
        return loss

    def _fixed_side(self) -> Any:
        """Return the side of the images that the model was configured for; None if it does not say."""
        return getattr(self.model.config, "image_size", None)

    def _divisor(self) -> int:
        """Return what height and width of the batch are padded to a multiple of.

        It is the side of a patch; where convolutions are padded as in TensorFlow, the coarsest stride, because features of
        maps of an odd size would lie half a cell beside those of even ones.
        """
        config = self.model.config
        if getattr(config, "tf_padding", False):
            return int(getattr(config, "output_stride", 32))
        patch = getattr(config, "patch_size", 1)
        return patch if isinstance(patch, int) else 1

    def _run(self, images: Tensor, labels: Tensor | None) -> Any:
        side = self._fixed_side()
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
