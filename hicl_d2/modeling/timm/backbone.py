"""Backbones of timm, an optional dependency; timm imports torchvision, whose version must match that of torch."""

from math import log2
from typing import Any

from torch import Tensor

from hicl_d2.command.errors import InputError, nearest, one_line
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.d2.modeling import Backbone


class TimmBackbone(Backbone):
    """A model of timm that outputs feature maps, as ``res{n}`` for the stride 2^n; its parameters are ``model.*``."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """Build MODEL.TIMM. Raises InputError for a name, or features, that timm does not have."""
        super().__init__()
        timm = _import_timm()
        settings = cfg.MODEL.TIMM
        if settings.NAME not in timm.list_models():
            raise InputError(
                f"MODEL.TIMM.NAME is {settings.NAME!r}{nearest(settings.NAME, timm.list_models())}; timm.list_models() "
                "lists what there is"
            )
        try:
            model: Any = timm.create_model(
                settings.NAME,
                features_only=True,
                pretrained=False,
                in_chans=input_shape.channels,
                **dict(settings.SETTINGS),
            )
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"MODEL.TIMM: {settings.NAME} gives no features: {one_line(error)}") from None
        self.model = model
        strides = [int(stride) for stride in model.feature_info.reduction()]
        self._names = [f"res{int(log2(stride))}" for stride in strides]
        missing = [name for name in settings.OUT_FEATURES if name not in self._names]
        if missing or not settings.OUT_FEATURES:
            raise InputError(
                f"MODEL.TIMM.OUT_FEATURES is {list(settings.OUT_FEATURES)}; what {settings.NAME} has: "
                f"{', '.join(self._names)}"
            )
        self._out_features = [name for name in self._names if name in settings.OUT_FEATURES]
        self._out_feature_strides = dict(zip(self._names, strides, strict=True))
        self._out_feature_channels = dict(zip(self._names, model.feature_info.channels(), strict=True))

    @property
    def size_divisibility(self) -> int:
        """Return the coarsest stride, of which height and width of the images must be multiples."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features (B, C, H / stride, W / stride) of images (B, 3, H, W)."""
        maps = dict(zip(self._names, self.model(images), strict=True))
        return {name: maps[name] for name in self._out_features}


def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone of MODEL.TIMM."""
    return TimmBackbone(cfg, input_shape)


def _import_timm() -> Any:
    """Import timm; raise InputError that says what to install if it or torchvision is absent or broken."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError(
            f"MODEL.BACKBONE.NAME build_timm_backbone needs {error.name}, which is not installed: pip install "
            "'hicl-d2[timm]' (and a torchvision for your torch: https://pytorch.org/get-started)"
        ) from None
    except Exception as error:  # a torchvision built for another torch may raise any exception
        import torch

        raise InputError(
            f"timm cannot be imported ({type(error).__name__}: {one_line(error)[:120]}); most often torchvision does not fit "
            f"torch {torch.__version__}: install the one that does (https://pytorch.org/get-started)"
        ) from None
    return timm
