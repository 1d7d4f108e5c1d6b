"""Semantic segmentation: a backbone and a head, and the head of semantic FPN."""

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.lite.config import CfgNode, configurable
from hicl_d2.lite.layers import Conv2d, ShapeSpec, get_norm
from hicl_d2.lite.modeling.backbone.backbone import Backbone, build_backbone
from hicl_d2.lite.modeling.meta_arch.build import META_ARCH_REGISTRY
from hicl_d2.lite.modeling.postprocessing import sem_seg_postprocess
from hicl_d2.lite.norms import Norm
from hicl_d2.lite.structures import ImageList
from hicl_d2.lite.utils.registry import Registry

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

# Holds classes that take a config and the shapes of the backbone's features and give a head: a module whose
# forward takes features and targets and gives (None, losses) in training and (logits, {}) otherwise.
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the head that MODEL.SEM_SEG_HEAD.NAME names, for features of the shapes ``input_shape``."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(nn.Module):
    """A backbone and a semantic head; ``pixel_mean`` and ``pixel_std`` normalise the images' channels."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build backbone and head and return the arguments of the constructor."""
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Return the device that the images are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the losses by name in training, else one dictionary per image.

        Each input holds "image" (C, H, W) with values 0..255, in training "sem_seg" (H, W) with class ids and
        the head's ignore value, and in testing the "height" and "width" of the output (default: the image's).
        Each output holds "sem_seg", logits (K, height, width).
        """
        multiple = self.backbone.size_divisibility
        images = ImageList.from_tensors(
            [
                (entry["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
                for entry in batched_inputs
            ],
            multiple,
        )
        features = self.backbone(images.tensor)
        targets = None
        if "sem_seg" in batched_inputs[0]:
            labels = [entry["sem_seg"].to(self.device, non_blocking=True) for entry in batched_inputs]
            ignore_value: Any = self.sem_seg_head.ignore_value
            targets = ImageList.from_tensors(labels, multiple, ignore_value).tensor
        results, losses = self.sem_seg_head(features, targets)
        if self.training:
            return losses
        outputs = []
        for logits, entry, size in zip(results, batched_inputs, images.image_sizes, strict=True):
            height, width = entry.get("height", size[0]), entry.get("width", size[1])
            outputs.append({"sem_seg": sem_seg_postprocess(logits, size, height, width)})
        return outputs


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """The head of semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks").

    Each feature goes through convolutions and upsampling to ``common_stride``; their sum is classified.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: Norm = None,
        ignore_value: int = -1,
    ) -> None:
        super().__init__()
        if not input_shape:
            raise ValueError("SemSegFPNHead needs at least one feature")
        shapes = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        self.in_features = list(shapes)
        self.ignore_value = ignore_value
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        for name, shape in shapes.items():
            self.add_module(name, self._scale_head(shape, conv_dims, norm))
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1, stride=1, padding=0)
        weight_init.c2_msra_fill(self.predictor)

    def _scale_head(self, shape: ShapeSpec, channels: int, norm: Norm) -> nn.Sequential:
        """Return convolutions and upsampling from the stride of ``shape`` to the common one."""
        layers: list[nn.Module] = []
        in_channels = shape.channels
        for _ in range(max(1, int(log2(shape.stride) - log2(self.common_stride)))):
            made_norm = get_norm(norm, channels)
            layers.append(
                Conv2d(in_channels, channels, 3, padding=1, bias=not norm, norm=made_norm, activation=F.relu)
            )
            weight_init.c2_msra_fill(layers[-1])
            if shape.stride != self.common_stride:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            in_channels = channels
        return nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        settings = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {
                name: shape for name, shape in input_shape.items() if name in settings.IN_FEATURES
            },
            "ignore_value": settings.IGNORE_VALUE,
            "num_classes": settings.NUM_CLASSES,
            "conv_dims": settings.CONVS_DIM,
            "common_stride": settings.COMMON_STRIDE,
            "norm": settings.NORM,
            "loss_weight": settings.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return (None, losses) in training, else (logits (B, K, H, W), {}); targets are labels (B, H, W)."""
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self._upsample(logits), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the common stride."""
        first, *others = (getattr(self, name)(features[name]) for name in self.in_features)
        return self.predictor(sum(others, start=first))

    def losses(self, predictions: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Return the mean cross entropy over labelled pixels, for logits at the common stride."""
        assert targets is not None, "labels (sem_seg) are needed in training"
        logits = self._upsample(predictions.float())
        loss = F.cross_entropy(logits, targets, reduction="mean", ignore_index=self.ignore_value)
        return {"loss_sem_seg": loss * self.loss_weight}

    def _upsample(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
