"""Feature maps that lie pixel by pixel in the memory of a CPU, where some operations have a faster form."""

import torch
from torch import Tensor


def is_pixel_by_pixel(x: Tensor) -> bool:
    """Return whether ``x`` is a channels_last batch in the host's memory, in a step that nobody traces."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or x.dim() != 4:
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def pad(x: Tensor, left: int, right: int, top: int = 0, bottom: int = 0) -> Tensor:
    """Return what F.pad does with a map (B, C, H, W), without a gradient: zeros at its ends, or less of it where negative.

    F.pad fills all of the result with zeros first, which takes longer than the copy.
    """
    height, width = x.shape[-2:]
    size = (*x.shape[:2], height + top + bottom, width + left + right)
    padded = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    (kept_rows, rows), (kept_columns, columns) = _overlap(height, top, bottom), _overlap(width, left, right)
    padded[..., : rows.start, :].zero_()
    padded[..., rows.stop :, :].zero_()
    padded[..., rows, : columns.start].zero_()
    padded[..., rows, columns.stop :].zero_()
    padded[..., rows, columns] = x[..., kept_rows, kept_columns]
    return padded


def _overlap(length: int, before: int, after: int) -> tuple[slice, slice]:
    """Return what is kept of an axis, and where that lies in the padded one; nothing where all of it is cut off."""
    first = min(max(-before, 0), length)
    last = max(length - max(-after, 0), first)
    start = max(before, 0)
    return slice(first, last), slice(start, start + last - first)
