"""The losses per pixel of `hicl_d2.modeling.deeplab.loss` on a CPU, together with the upsampling before them.

They equal the plain ones on upsampled logits within rounding. Logits at the labels' size are made for a few rows at a time,
which stay in the processor's cache, by two products with a band matrix. The gradient is made in the forward pass: together with
the loss, or in a second one where all losses say which pixels are the hardest. Those come of a threshold instead of a sort. For
8 x 11 x 192 x 256 a third of the plain time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hicl_d2.contrast.frame import uncompiled
from hicl_d2.contrast.fused import host
from hicl_d2.contrast.once import differentiable_once
from hicl_d2.hooks import is_watched
from hicl_d2.modeling.deeplab.bilinear import bilinear_matrix
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy

# Logits at the labels' size that are made at a time.
CHUNK = 1 << 17

# What a pixel's loss weighs in the sum, or the function that finds it from all losses (B, H, W).
Share = float | Callable[[Tensor], Tensor]


def can_fuse(loss: nn.Module, logits: Tensor) -> bool:
    """Return whether ``loss`` is one of the two losses, nobody sees its calls, and ``logits`` are in the host's memory."""
    is_known = type(loss) in (PixelCrossEntropy, HardPixelMining)
    return is_known and not is_watched(loss) and host.on_host(logits)


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

    classes = labels.masked_fill(is_ignored, 0)
    share = _share(loss, labels)
    return _UpsampledLoss.apply(logits, classes, factors, stride, share, torch.is_grad_enabled())


def _share(loss: PixelCrossEntropy | HardPixelMining, labels: Tensor) -> Share:
    """Return what each pixel's loss weighs in the sum, or what finds it from all of them."""
    if isinstance(loss, PixelCrossEntropy):
        return 1 / float(loss.total_weight(labels))
    count = max(int(loss.top_k * labels.numel()), 1)
    return partial(hardest, count=count) if count < labels.numel() else 1 / count


def hardest(losses: Tensor, count: int) -> Tensor:
    """Return the share of each loss (any shape) in the mean of the ``count`` largest; equal ones at the end share alike.

    A loss that is NaN is among the largest.
    """
    place = losses.numel() - count
    least = float(np.partition(losses.detach().numpy().ravel(), place)[place])
    taken = ~(losses < least)
    shares = taken.to(losses.dtype)
    surplus = int(taken.sum()) - count
    if surplus > 0:
        is_last = losses == least
        equal = int(is_last.sum())  # none is equal to NaN
        shares.masked_fill_(is_last, (equal - surplus) / max(equal, 1))
    return shares.div_(count)


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class _Rows(NamedTuple):
    """Some rows of one image at the labels' size.

    Attributes:
        rows: at the labels' size.
        small: the rows of the logits that they come of.
        weights: how they do: (1, rows, small).
    """

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
        share: Share,
        with_gradient: bool,
    ) -> Tensor:
        """``labels`` are classes, ``factors`` multiply the loss of each pixel, ``share`` is what it then weighs in the sum."""
        with_gradient = with_gradient and ctx.needs_input_grad[0]
        with torch.autocast("cpu", enabled=False):
            scores = _Upsampled(logits, labels.shape[-2:], stride)
            if callable(share):
                losses, normalizers = scores.losses(labels, factors)
                shares = share(losses)
                gradient = scores.gradient(labels, factors * shares, normalizers) if with_gradient else None
                loss = (losses * shares).sum()
            else:
                gradient = (
                    torch.empty(scores.logits.shape, dtype=scores.logits.dtype) if with_gradient else None
                )
                loss = scores.loss(labels, factors * share, gradient)
            if gradient is not None:
                ctx.save_for_backward(gradient.to(logits.dtype))
            return loss

    @staticmethod
    @differentiable_once("use the plain loss of the upsampled logits")
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (of_logits,) = ctx.saved_tensors
        return of_logits * gradient, None, None, None, None, None


class _Upsampled:
    """Logits (B, K, h, w) at the labels' size, of which some rows (K, rows, W) after the others are made."""

    def __init__(self, logits: Tensor, size: torch.Size, stride: int) -> None:
        self.logits = logits.detach().to(_dtype(logits))
        self.stride = stride
        height, width = size
        small_height, small_width = self.logits.shape[-2:]
        self.down = bilinear_matrix(small_height, small_height * stride, self.logits)[:, :height].t()
        self.across = bilinear_matrix(small_width, small_width * stride, self.logits)[:, :width]
        self.step = stride * max(CHUNK // (self.logits.shape[1] * width * stride), 1)

    def losses(self, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each pixel times ``factors``, and the logarithm of its sum over classes, all (B, H, W)."""
        losses, normalizers = torch.empty_like(factors), torch.empty_like(factors)
        for image in range(len(self.logits)):
            wide = self._wide(image)
            for part in self._parts():
                values, own = self._values(wide, part), labels[image, part.rows]
                normalizer = normalizers[image, part.rows] = values.logsumexp(0)
                losses[image, part.rows] = normalizer - values.gather(0, own[None])[0]
        return torch.where(factors == 0, 0, losses * factors), normalizers

    def gradient(self, labels: Tensor, weights: Tensor, normalizers: Tensor) -> Tensor:
        """Return the gradient at the logits of the losses that ``weights`` (B, H, W) sum up; see `losses`."""
        found = torch.empty(self.logits.shape, dtype=self.logits.dtype)
        for image in range(len(found)):
            wide = self._wide(image)
            gradient = torch.zeros_like(wide)
            for part in self._parts():
                values = self._values(wide, part).sub_(normalizers[image, part.rows]).exp_()
                weight = weights[image, part.rows]
                self._add(gradient, part, values.mul_(weight), labels[image, part.rows], weight)
            found[image] = torch.matmul(gradient, self.across.t())
        return found

    def loss(self, labels: Tensor, weights: Tensor, found: Tensor | None) -> Tensor:
        """Return the losses summed up by ``weights`` (B, H, W); their gradient at the logits is written to ``found``."""
        sums = []
        for image in range(len(self.logits)):
            wide = self._wide(image)
            gradient = torch.zeros_like(wide)
            for part in self._parts():
                values = self._values(wide, part)
                own, weight = labels[image, part.rows], weights[image, part.rows]
                chosen, largest = values.gather(0, own[None])[0], values.amax(0)
                total = values.sub_(largest).exp_().sum(0)
                losses = total.log().add_(largest).sub_(chosen)
                sums.append(torch.where(weight == 0, 0, losses * weight).sum())
                if found is not None:
                    self._add(gradient, part, values.mul_(weight / total), own, weight)
            if found is not None:
                found[image] = torch.matmul(gradient, self.across.t())
        return torch.stack(sums).sum()

    def _add(self, gradient: Tensor, part: _Rows, values: Tensor, own: Tensor, weight: Tensor) -> None:
        """Add to ``gradient`` (K, h, W) that of some rows, whose probabilities times ``weight`` (rows, W) are ``values``."""
        values.scatter_add_(0, own[None], -weight[None])
        back = part.weights.transpose(1, 2).expand(len(values), -1, -1)
        gradient[:, part.small] += torch.bmm(back, values)

    def _wide(self, image: int) -> Tensor:
        """Return one image's logits at the full width, (K, h, W)."""
        return torch.matmul(self.logits[image].contiguous(), self.across)

    def _values(self, wide: Tensor, part: _Rows) -> Tensor:
        return torch.bmm(part.weights.expand(len(wide), -1, -1), wide[:, part.small])

    def _parts(self) -> Iterator[_Rows]:
        height, small_height = self.down.shape
        for top in range(0, height, self.step):
            rows = slice(top, min(top + self.step, height))
            first, last = top // self.stride - 1, (rows.stop - 1) // self.stride + 1
            small = slice(max(first, 0), min(last + 1, small_height))
            yield _Rows(rows, small, self.down[None, rows, small])
