"""Losses per pixel: cross entropy, and hard pixel mining.

They equal torch's ``CrossEntropyLoss`` and Detectron2's ``DeepLabCE``, computed in float32 for logits of any dtype. If
every pixel is ignored the loss is zero, with a gradient of zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError

LOSS_TYPES = ("cross_entropy", "hard_pixel_mining")


class PixelCrossEntropy(nn.Module):
    """Average the cross entropy over the pixels that are not ``ignore_value``, weighted by ``class_weights`` (K,) if given."""

    def __init__(self, ignore_value: int = -1, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.ignore_value = ignore_value
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar, for logits (B, K, H, W) and labels (B, H, W) of class ids and ignore values.

        ``weights`` (B, H, W) multiply the loss of each pixel.
        """
        settings: dict[str, Any] = {
            "reduction": "sum" if weights is None else "none",
            "ignore_index": self.ignore_value,
        }
        losses = F.cross_entropy(logits.float(), labels, weight=self.class_weights, **settings)
        total = losses if weights is None else (losses * weights).sum()
        return total / self.total_weight(labels)

    def total_weight(self, labels: Tensor) -> Tensor:
        """Return what the sum of the losses is divided by: the sum of the class weights of labelled pixels, or their number."""
        is_labelled = labels != self.ignore_value
        if self.class_weights is None:
            return is_labelled.sum().clamp(min=1)
        # A mask in place of an index, which would make the host wait for the device.
        total = (self.class_weights[labels.masked_fill(~is_labelled, 0)] * is_labelled).sum()
        return torch.where(total > 0, total, 1.0)


class HardPixelMining(nn.Module):
    """Average the cross entropy over the hardest share of all pixels (DeeperLab, Yang et al. 2019).

    ``top_k`` is a share of all pixels, ignored ones included; an ignored pixel has loss 0 and is selected last.
    ``class_weights`` (K,) multiply the losses before the hardest are chosen.
    """

    def __init__(
        self, ignore_value: int = -1, top_k: float = 1.0, class_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        if not 0 < top_k <= 1:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TOP_K is {top_k}; it must be a share of the pixels, above 0, at most 1"
            )
        self.ignore_value = ignore_value
        self.top_k = top_k
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar, for logits (B, K, H, W) and labels (B, H, W) of class ids and ignore values.

        ``weights`` (B, H, W) multiply the loss of each pixel before the hardest are chosen.
        """
        settings: dict[str, Any] = {"reduction": "none", "ignore_index": self.ignore_value}
        losses = F.cross_entropy(logits.float(), labels, weight=self.class_weights, **settings)
        losses = (losses if weights is None else losses * weights).flatten()
        if self.top_k == 1:
            return losses.mean()
        count = max(int(self.top_k * losses.numel()), 1)
        return torch.topk(losses, count, sorted=False).values.mean()


def build_loss(
    name: str, ignore_value: int, top_k: float = 0.2, class_weights: Sequence[float] = ()
) -> nn.Module:
    """Make the loss that MODEL.SEM_SEG_HEAD.LOSS_TYPE names; raises InputError for an unknown one.

    ``class_weights`` has one number a class, or none.
    """
    weights = torch.tensor(class_weights, dtype=torch.float32) if len(class_weights) else None
    if name not in LOSS_TYPES:
        raise InputError(f"MODEL.SEM_SEG_HEAD.LOSS_TYPE is {name!r}; it must be {' or '.join(LOSS_TYPES)}")
    if name == "cross_entropy":
        return PixelCrossEntropy(ignore_value, weights)
    return HardPixelMining(ignore_value, top_k, weights)
