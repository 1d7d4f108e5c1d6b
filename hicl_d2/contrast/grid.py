"""Labels at image resolution, aligned with the grid of a feature map."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "LabelGrid",
    "align_labels",
    "at_middle",
    "infer_stride",
    "nearest_classes",
    "resize_logits",
    "signed",
]


@dataclass(frozen=True)
class LabelGrid:
    """Hold the labels of a batch, grouped by the cell of the feature map that covers them.

    Attributes:
        planes: (stride * stride, B, h, w) integer, in the narrowest type: plane p holds pixel (p // stride, p % stride)
            of every cell, a class or `unlabelled`, whatever the caller's ignore value was.
        stride: label pixels per cell, along each axis.
        num_classes: classes are 0 to num_classes - 1.
    """

    planes: Tensor
    stride: int
    num_classes: int

    @property
    def unlabelled(self) -> int:
        """Return the value of an unlabelled pixel in ``planes``: K, since their type may be unsigned.

        It is for pixels alone. Windows, cells, anchors and components without a class have class -1.
        """
        return self.num_classes

    @property
    def size(self) -> tuple[int, int]:
        """Return (h, w), the size of the feature map."""
        return self.planes.shape[2], self.planes.shape[3]

    @property
    def batch_size(self) -> int:
        """Return B."""
        return self.planes.shape[1]

    @property
    def num_cells(self) -> int:
        """Return B x h x w, the number of cells of the batch."""
        return self.planes[0].numel()


def infer_stride(label_size: tuple[int, int], feature_size: tuple[int, int]) -> int:
    """Find how many label pixels one cell of the feature map covers, along each axis.

    A stride fits when ceil(H / stride) = h and ceil(W / stride) = w: labels whose size is no multiple of it are padded.
    Of several that fit, an exact divisor wins, then a power of two, then the smallest.

    Raises ValueError, naming both sizes, when none fits.
    """
    (H, W), (h, w) = label_size, feature_size
    if min(H, W, h, w) > 0:
        low = max(-(-H // h), -(-W // w))
        high = min((H - 1) // (h - 1) if h > 1 else max(H, low), (W - 1) // (w - 1) if w > 1 else max(W, low))
        if low <= high:
            if (low * h, low * w) == (H, W):
                return low
            return next((s for s in range(low, high + 1) if s & (s - 1) == 0), low)
    raise ValueError(
        f"labels of {H} x {W} pixels do not lie on a feature map of {h} x {w} cells: no whole stride s gives "
        f"ceil({H} / s) = {h} and ceil({W} / s) = {w}; pass the labels of the padded images that the features come from"
    )


def align_labels(
    labels: Tensor, feature_size: tuple[int, int], num_classes: int, ignore_value: int = 255
) -> LabelGrid:
    """Align labels (B, H, W), integer, with a feature map of ``feature_size`` (h, w).

    ``ignore_value`` and everything outside 0 to num_classes - 1 becomes unlabelled, and so do the padding pixels where H
    or W is no multiple of the stride.

    Raises ValueError when the sizes do not fit (see `infer_stride`).
    """
    B, H, W = labels.shape
    h, w = feature_size
    stride = infer_stride((H, W), (h, w))
    labels = signed(labels)
    planes = _narrow(labels, num_classes)
    if 0 <= ignore_value < num_classes:
        planes = planes.masked_fill(labels == ignore_value, num_classes)
    if (h * stride, w * stride) != (H, W):
        planes = F.pad(planes, (0, w * stride - W, 0, h * stride - H), value=num_classes)
    cells = planes.view(B, h, stride, w, stride).permute(2, 4, 0, 1, 3)
    return LabelGrid(cells.reshape(stride * stride, B, h, w), stride, num_classes)


def signed(labels: Tensor) -> Tensor:
    """Return integer ``labels`` in a type that compares and clamps; torch stores unsigned ones of 16 bits and more alone."""
    if labels.dtype == torch.uint16:
        return labels.to(torch.int32)
    return labels.to(torch.int64) if labels.dtype in (torch.uint32, torch.uint64) else labels


def _narrow(labels: Tensor, num_classes: int) -> Tensor:
    """Turn labels into 0..num_classes (= unlabelled) in the narrowest integer type: later passes read every pixel."""
    if labels.dtype != torch.uint8:
        labels = labels.clamp(-1, num_classes)
    # 255 is left to class -1, which becomes 255 in this type and must equal no pixel.
    if num_classes < 255:
        return labels.to(torch.uint8).clamp(max=num_classes)
    labels = labels.to(torch.int32)
    return torch.where(labels < 0, num_classes, labels)


def nearest_classes(grid: LabelGrid, window: int = 1) -> Tensor:
    """Read the class at the middle of every ``window`` x ``window`` cells.

    Returns (B, h // window, w // window) int64, -1 where that pixel is unlabelled. The middle of an even number of
    pixels is the one below and to the right of it.
    """
    cell, pixel = divmod(window * grid.stride // 2, grid.stride)
    classes = at_middle(grid.planes[pixel * grid.stride + pixel], window, cell).long()
    return torch.where(classes < grid.unlabelled, classes, -1)


def at_middle(cells: Tensor, window: int, offset: int) -> Tensor:
    """Take the cell at ``offset`` along both axes of every window that lies on the map (..., h, w)."""
    rows, columns = cells.shape[-2] // window, cells.shape[-1] // window
    return cells[..., offset::window, offset::window][..., :rows, :columns]


def resize_logits(logits: Tensor, feature_size: tuple[int, int]) -> Tensor:
    """Resize logits (B, K, h', w') to the feature map's (h, w), bilinearly; detached, float32 or float64."""
    logits = logits.detach()
    if logits.dtype != torch.float64:
        logits = logits.float()
    if tuple(logits.shape[-2:]) != tuple(feature_size):
        logits = F.interpolate(logits, size=feature_size, mode="bilinear", align_corners=False)
    return logits
