"""Layers: convolutions with norm and activation, norms, the pyramid of dilated convolutions."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.layers import ASPP, CNNBlockBase, Conv2d, DepthwiseSeparableConv2d, ShapeSpec, get_norm
else:
    from hicl_d2.lite.layers import ASPP, CNNBlockBase, Conv2d, DepthwiseSeparableConv2d, ShapeSpec, get_norm

__all__ = ["ASPP", "CNNBlockBase", "Conv2d", "DepthwiseSeparableConv2d", "ShapeSpec", "get_norm"]
