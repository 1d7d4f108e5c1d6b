"""The interface of backbones, their registry, and building one from the config."""

from abc import ABCMeta, abstractmethod
from typing import Any

from torch import nn

from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.layers import ShapeSpec
from hicl_d2.lite.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

# Holds functions (or classes) that take a config and the ShapeSpec of the images and give a Backbone.
BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base of networks that map images (B, C, H, W) to a dictionary of named feature maps.

    A subclass sets ``_out_features``, ``_out_feature_channels`` and ``_out_feature_strides``, or overrides
    :meth:`output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, *args: Any) -> Any:
        """Return the feature maps (B, channels, H / stride, W / stride) by name."""

    @property
    def size_divisibility(self) -> int:
        """Return what the height and width of the images must be a multiple of; 0 for anything."""
        return 0

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone that MODEL.BACKBONE.NAME names, for images of len(MODEL.PIXEL_MEAN) channels."""
    shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, shape)
    assert isinstance(backbone, Backbone), (
        f"{cfg.MODEL.BACKBONE.NAME} gave a {type(backbone).__name__}, no Backbone"
    )
    return backbone
