"""The losses per pixel of `hicl_d2.modeling.deeplab.loss` on a CPU, together with the upsampling before them.

They equal the plain ones on upsampled logits within rounding. Logits at the labels' size are made for a few rows at a time,
which stay in the processor's cache, by two products with a band matrix, and once more for the gradient, which is made in the
forward pass. The hardest pixels come of a threshold instead of a sort. For 8 x 11 x 192 x 256 a third of the plain time.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hicl_d2.contrast.frame import uncompiled
from hicl_d2.contrast.fused import host
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy

# Logits at the labels' size that are made at a time.
CHUNK = 1 << 18


def can_fuse(loss: nn.Module, logits: Tensor) -> bool:
    """Return whether ``loss`` is one of the two losses, and ``logits`` are in the host's memory."""
    return type(loss) in (PixelCrossEntropy, HardPixelMining) and host.on_host(logits)


@uncompiled
def upsampled_loss(
    loss: nn.Module, logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None = None
) -> Tensor:
    """Return ``loss`` of logits (B, K, h, w), upsampled by ``stride`` and cropped to the labels (B, H, W); see `can_fuse`.

    ``weights`` (B, H, W) multiply the loss of each pixel.
    """
    assert isinstance(loss, PixelCrossEntropy | HardPixelMining)
    is_ignored = labels == loss.ignore_value
    factors = (~is_ignored).to(_dtype(logits))
    if loss.class_weights is not None:
        factors *= loss.class_weights[labels.masked_fill(is_ignored, 0)]
    if weights is not None:
        factors *= weights

    def shares(losses: Tensor) -> Tensor | float:
        if isinstance(loss, PixelCrossEntropy):
            return 1 / float(loss.total_weight(labels))
        return hardest(losses, max(int(loss.top_k * losses.numel()), 1))

    classes = labels.masked_fill(is_ignored, 0)
    return _UpsampledLoss.apply(logits, classes, factors, stride, shares, torch.is_grad_enabled())


def hardest(losses: Tensor, count: int) -> Tensor | float:
    """Return the share of each loss (any shape) in the mean of the ``count`` largest; equal ones at the end share alike.

    A loss that is NaN is among the largest.
    """
    if count == losses.numel():
        return 1 / count
    place = losses.numel() - count
    least = float(np.partition(losses.detach().numpy().ravel(), place)[place])
    taken = ~(losses < least)
    shares = taken.to(losses.dtype)
    surplus = int(taken.sum()) - count
    if surplus > 0:
        is_last = losses == least
        shares -= is_last * (surplus / max(int(is_last.sum()), 1))  # none is equal to NaN
    return shares.div_(count)


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class _Rows(NamedTuple):
    """Some rows of one image at the labels' size.

    Attributes:
        image: its place in the batch.
        rows: at the labels' size.
        small: the rows of the logits that they come of.
        weights: how they do: (1, rows, small).
    """

    image: int
    rows: slice
    small: slice
    weights: Tensor


class _UpsampledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        factors: Tensor,
        stride: int,
        shares: Callable[[Tensor], Tensor | float],
        with_gradient: bool,
    ) -> Tensor:
        """``labels`` are classes, ``factors`` multiply the loss of each pixel, ``shares`` gives what it weighs in the sum."""
        with torch.autocast("cpu", enabled=False):
            scores = _Upsampled(logits, labels.shape[-2:], stride)
            normalizers, losses = torch.empty_like(factors), torch.empty_like(factors)
            for part, values in scores:
                own = labels[part.image, part.rows]
                normalizer = normalizers[part.image, part.rows] = values.logsumexp(0)
                losses[part.image, part.rows] = normalizer - values.gather(0, own[None])[0]
            losses = torch.where(factors == 0, 0, losses * factors)
            share = shares(losses)
            if with_gradient and ctx.needs_input_grad[0]:
                weights = factors * share
                gradient = scores.gradient(normalizers, labels, weights)
                ctx.save_for_backward(gradient.to(logits.dtype))
            return (losses * share).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (of_logits,) = ctx.saved_tensors
        return of_logits * gradient, None, None, None, None, None


class _Upsampled:
    """Logits (B, K, h, w) at the labels' size: iterate over some rows after the others, each (K, rows, W)."""

    def __init__(self, logits: Tensor, size: torch.Size, stride: int) -> None:
        self.logits = logits.detach().to(_dtype(logits))
        self.stride = stride
        height, width = size
        self.down = _bilinear(self.logits.shape[2], stride, self.logits)[:, :height].t()
        self.across = _bilinear(self.logits.shape[3], stride, self.logits)[:, :width]
        self.step = stride * max(CHUNK // (self.logits.shape[1] * width * stride), 1)

    def __iter__(self) -> Iterator[tuple[_Rows, Tensor]]:
        for image in range(len(self.logits)):
            wide = self._wide(image)
            for part in self._parts(image):
                yield part, self._values(wide, part)

    def _wide(self, image: int) -> Tensor:
        """Return one image's logits at the full width, (K, h, W)."""
        return torch.matmul(self.logits[image].contiguous(), self.across)

    def _values(self, wide: Tensor, part: _Rows) -> Tensor:
        return torch.bmm(part.weights.expand(len(wide), -1, -1), wide[:, part.small])

    def _parts(self, image: int) -> Iterator[_Rows]:
        height, small_height = self.down.shape
        for top in range(0, height, self.step):
            rows = slice(top, min(top + self.step, height))
            first, last = top // self.stride - 1, (rows.stop - 1) // self.stride + 1
            small = slice(max(first, 0), min(last + 1, small_height))
            yield _Rows(image, rows, small, self.down[None, rows, small])

    def gradient(self, normalizers: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient at the logits of the losses that ``weights`` (B, H, W) sum up."""
        found = torch.empty(self.logits.shape, dtype=self.logits.dtype)
        for image in range(len(found)):
            wide = self._wide(image)
            gradient = torch.zeros_like(wide)
            for part in self._parts(image):
                own = labels[image, part.rows][None]
                values = self._values(wide, part).sub_(normalizers[image, part.rows]).exp_()
                values.scatter_add_(0, own, values.new_tensor(-1.0).expand(own.shape))
                values *= weights[image, part.rows]
                gradient[:, part.small] += torch.bmm(
                    part.weights.transpose(1, 2).expand(len(wide), -1, -1), values
                )
            found[image] = torch.matmul(gradient, self.across.t())
        return found


def _bilinear(length: int, stride: int, like: Tensor) -> Tensor:
    """Return what takes ``length`` values to ``stride`` times as many as F.interpolate does, as (length, length x stride)."""
    ones = torch.eye(length, dtype=like.dtype)[None]
    return F.interpolate(ones, scale_factor=stride, mode="linear", align_corners=False)[0]
