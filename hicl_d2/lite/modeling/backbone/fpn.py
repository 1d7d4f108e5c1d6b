"""Feature pyramid networks (Lin et al., "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2
from typing import Any

from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.layers import Conv2d, ShapeSpec, get_norm
from hicl_d2.lite.modeling.backbone.backbone import BACKBONE_REGISTRY, Backbone
from hicl_d2.lite.modeling.backbone.resnet import build_resnet_backbone
from hicl_d2.lite.norms import Norm

__all__ = ["FPN", "LastLevelMaxPool", "build_resnet_fpn_backbone"]


class LastLevelMaxPool(nn.Module):
    """Makes one more level, p6, by taking every second pixel of p5."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return [(B, C, H / 2, W / 2)]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class FPN(Backbone):
    """A pyramid on a backbone's features: coarse levels are upsampled onto finer ones, all of equal width.

    ``in_features`` go from fine to coarse with strides that double; the level of stride 2**n is ``p<n>``.
    ``top_block`` adds coarser levels; ``fuse_type`` is sum or avg. Raises InputError for a feature that
    ``bottom_up`` does not return.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Norm = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if not in_features or not set(in_features) <= set(shapes):
            found = ", ".join(shapes)
            raise InputError(
                f"the FPN's backbone gives out {found}; MODEL.FPN.IN_FEATURES: {list(in_features)}"
            )
        strides = [shapes[name].stride for name in in_features]
        assert all(b == 2 * a for a, b in pairwise(strides)), f"strides {strides} must double"
        assert fuse_type in ("avg", "sum"), f"fuse_type must be avg or sum, not {fuse_type!r}"
        self._levels = [int(log2(stride)) for stride in strides]
        for name, level in zip(in_features, self._levels, strict=True):
            for part, channels, size in [("lateral", shapes[name].channels, 1), ("output", out_channels, 3)]:
                extra: dict[str, Any] = {"bias": norm == "", "norm": get_norm(norm, out_channels)}
                self.add_module(
                    f"fpn_{part}{level}", Conv2d(channels, out_channels, size, padding=size // 2, **extra)
                )
            weight_init.c2_xavier_fill(getattr(self, f"fpn_lateral{level}"))
            weight_init.c2_xavier_fill(getattr(self, f"fpn_output{level}"))
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        coarsest = self._levels[-1] + getattr(top_block, "num_levels", 0)
        self._out_feature_strides = {f"p{n}": 1 << n for n in range(self._levels[0], coarsest + 1)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        """Return the coarsest stride: levels fit onto each other only if it divides the image."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return p<n> (B, out_channels, H / 2**n, W / 2**n) for images (B, C, H, W), from fine to coarse."""
        features = self.bottom_up(x)
        levels: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name, level in zip(reversed(self.in_features), reversed(self._levels), strict=True):
            current = getattr(self, f"fpn_lateral{level}")(features[name])
            if above is not None:
                current = current + F.interpolate(above, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    current /= 2
            levels[f"p{level}"] = getattr(self, f"fpn_output{level}")(current)
            above = current
        results = dict(reversed(levels.items()))
        if self.top_block is not None:
            source = str(self.top_block.in_feature)
            coarser = self.top_block(features[source] if source in features else results[source])
            results |= zip(self._out_features[len(results) :], coarser, strict=True)
        return results


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the FPN of MODEL.FPN on the ResNet of MODEL.RESNETS, with p6 on top."""
    settings = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=settings.IN_FEATURES,
        out_channels=settings.OUT_CHANNELS,
        norm=settings.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=settings.FUSE_TYPE,
    )
