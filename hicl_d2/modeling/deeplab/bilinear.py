"""Bilinear upsampling as a product with a matrix, and its gradient in torch's fast form."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hicl_d2.channels_last import is_pixel_by_pixel


def upsample_to(x: Tensor, size: torch.Size) -> Tensor:
    """Return F.interpolate's bilinear ``x`` (B, C, h, w) at ``size`` (H, W), to be joined with other maps.

    What comes back from there is a part of a larger gradient. On a CPU in channels_last, torch takes fourteen times as long for
    that as for its copy, so it is copied first.
    """
    y = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if y.requires_grad and is_pixel_by_pixel(y):
        y.register_hook(_pixel_by_pixel)
    return y


def _pixel_by_pixel(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def bilinear_matrix(length: int, size: int, like: Tensor) -> Tensor:
    """Return what takes ``length`` values to ``size`` as F.interpolate does, (length, size) in dtype and device of ``like``."""
    ones = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(ones, size=size, mode="linear", align_corners=False)[0]
