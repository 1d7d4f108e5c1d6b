"""A decoder's step from a coarse map to a finer one: upsample it, join the two, and convolve.

Upsampling weighs pixels and a 1x1 convolution weighs channels, so either may come first. A 3x3 convolution is nine 1x1
convolutions whose outputs are added up, each moved by a pixel. The coarse map's share of it is therefore nine 1x1
convolutions at the coarse size, whose outputs a product with a matrix of a few hundred entries a row upsamples, moves and
adds up. It equals the plain computation within rounding; the upsampled map is neither made nor kept for the gradient. On one
thread of a CPU, forward and backward, DeepLabV3+'s 256 channels from stride 16 to 4 take 0.32 of the plain time.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.channels_last import is_pixel_by_pixel
from hicl_d2.d2.layers import Conv2d
from hicl_d2.hooks import is_watched
from hicl_d2.modeling.deeplab.bilinear import bilinear_matrix, upsample_to

# Multiplications that a small product costs for one of a large convolution, with the copies around it (measured).
_DEARER = 1.5


def join(convolutions: nn.Module, fine: Tensor, coarse: Tensor) -> Tensor:
    """Return ``convolutions`` of ``fine`` (B, P, H, W) and ``coarse`` (B, C, h, w), upsampled to it, joined in this order.

    On a CPU in channels_last, where it is cheaper, a 3x3 convolution that comes first sees ``coarse`` at its own size. A
    convolution with hooks is given what it would be given without that.
    """
    first = _splittable(convolutions)
    if first is not None and _pays(fine, coarse):
        assert isinstance(convolutions, nn.Sequential)
        return convolutions[1:](_joined_first(first, fine, coarse))
    upsampled = upsample_to(coarse, fine.shape[-2:])
    joined: Tensor = convolutions(torch.cat([fine, upsampled], dim=1))
    return joined


def _splittable(convolutions: nn.Module) -> Conv2d | None:
    """Return the first of ``convolutions`` if it is 3x3 over all channels, keeps the size, and nobody sees its calls."""
    # A subclass may do more with the joined map than hand it to its first convolution.
    if type(convolutions) is not nn.Sequential or not len(convolutions):
        return None
    first = convolutions[0]
    if type(first) is not Conv2d:
        return None
    is_plain = (
        first.kernel_size == (3, 3)
        and first.stride == first.padding == first.dilation == (1, 1)
        and first.groups == 1
        and first.padding_mode == "zeros"
    )
    return first if is_plain and not is_watched(convolutions) and not is_watched(first) else None


def _pays(fine: Tensor, coarse: Tensor) -> bool:
    """Return whether a convolution of the two takes less time if it sees ``coarse`` at its own size, and is as exact."""
    if not (is_pixel_by_pixel(fine) and is_pixel_by_pixel(coarse)):
        return False
    (channels, height, width), (fine_height, fine_width) = coarse.shape[1:], fine.shape[-2:]
    if _is_half(coarse) and not (_is_exact(height, fine_height) and _is_exact(width, fine_width)):
        return False
    # Multiplications for an output pixel and channel: of the coarse map's share, and of what takes its place.
    taps = 9 * channels * (height * width) / (fine_height * fine_width)
    across, down = 9 * height * width / fine_height, 3 * height
    return _DEARER * (taps + across + down) < 9 * channels


def _is_half(x: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu") or x.dtype in (torch.float16, torch.bfloat16)


def _is_exact(length: int, size: int) -> bool:
    """Return whether half precision holds the weights that ``length`` values are upsampled to ``size`` with."""
    scale, rest = divmod(size, length)
    return rest == 0 and scale & (scale - 1) == 0


def _joined_first(convolution: Conv2d, fine: Tensor, coarse: Tensor) -> Tensor:
    """Return the output (B, O, H, W) of ``convolution`` with its norm and activation, without the upsampled map."""
    (images, channels, height, width), (fine_height, fine_width) = coarse.shape, fine.shape[-2:]
    for_fine, for_coarse = convolution.weight.split([fine.shape[1], channels], dim=1)
    # (B, h, w, C) with (C, across, down, O): each tap's own output at the coarse size.
    taps = torch.matmul(coarse.permute(0, 2, 3, 1), for_coarse.permute(1, 3, 2, 0).flatten(1))
    taps = taps.view(images, height, width, 3, 3, -1).permute(0, 1, 4, 3, 2, 5)
    taps = taps.reshape(images, height * 3, 3 * width, -1)
    wide = torch.matmul(_moved(width, fine_width, taps), taps)
    of_fine = F.conv2d(fine, for_fine, convolution.bias, padding=1)
    # Rows of the image for rows of a matrix: channels_last, the last product adds to the fine map's share.
    rows = of_fine.permute(0, 2, 3, 1).reshape(images, fine_height, -1)
    # (3, h) to (h, 3), as the rows of taps lie.
    down = _moved(height, fine_height, taps).view(fine_height, 3, height).transpose(1, 2).flatten(1)
    rows = torch.baddbmm(rows, down.expand(images, -1, -1), wide.view(images, height * 3, -1))
    y = rows.view(images, fine_height, fine_width, -1).permute(0, 3, 1, 2)
    if convolution.norm is not None:
        y = convolution.norm(y)
    return y if convolution.activation is None else convolution.activation(y)


def _moved(length: int, size: int, like: Tensor) -> Tensor:
    """Return (size, 3 length): the upsampled value before each place, at it and after it; beyond the ends it is zero."""
    whole = bilinear_matrix(length, size, like).t()
    return torch.cat([F.pad(whole[:-1], (0, 0, 1, 0)), whole, F.pad(whole[1:], (0, 0, 0, 1))], dim=1)
