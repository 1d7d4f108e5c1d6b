"""Images of several sizes in one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ImageList"]


class ImageList:
    """A batch of images padded at the bottom and the right to one size, with the size that each had before.

    ``tensor`` is (N, ..., H, W); ``image_sizes`` holds (height, width) per image.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image (..., h, w) without its padding."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
    ) -> "ImageList":
        """Pad images (..., h, w) with ``pad_value`` to the largest height and width and stack them.

        The common size is rounded up to a multiple of ``size_divisibility`` (0 and 1 leave it). Raises AssertionError
        for no images, or images whose leading dimensions differ.
        """
        assert len(tensors) > 0, "ImageList.from_tensors needs at least one image"
        leading = tensors[0].shape[:-2]
        assert all(t.shape[:-2] == leading for t in tensors), [tuple(t.shape) for t in tensors]
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        multiple = max(size_divisibility, 1)
        height, width = (-(-side // multiple) * multiple for side in (height, width))
        padded = [
            F.pad(t, (0, width - w, 0, height - h), value=pad_value)
            for t, (h, w) in zip(tensors, sizes, strict=True)
        ]
        return ImageList(torch.stack(padded).contiguous(), sizes)
