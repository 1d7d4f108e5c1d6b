"""Pixel-to-pixel contrast, as in ContrastiveSeg."""

from typing import Any

import torch
from torch import Tensor

from hicl_d2.contrast.anchors import wrongly_predicted
from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.fused import embed
from hicl_d2.contrast.grid import LabelGrid, nearest_classes
from hicl_d2.contrast.peers.memory import make_memory, recall, remember
from hicl_d2.contrast.peers.pairs import describe, info_nce
from hicl_d2.contrast.peers.rows import region_means, sample_pixels

__all__ = ["PixelContrast", "PixelMemoryContrast"]


class PixelContrast(Contrast):
    """Contrast sampled pixels with each other.

    Source: Wang, Zhou, Yu, Dai, Konukoglu, Van Gool, "Exploring Cross-Image Pixel Contrast for Semantic
    Segmentation", ICCV 2021, arXiv 2101.11939 (ContrastiveSeg), without its memory. Anchors are sampled by
    class, half of them from wrongly predicted pixels; every anchor is contrasted with the other anchors by
    the pixel-wise InfoNCE. Labels are read at the middle of each cell.

    Known faults of the published code that are not repeated:

    - with one process the weight of the loss was silently 0: nothing here depends on the number of
      processes;
    - a batch without a class of enough pixels crashed: here every labelled pixel qualifies, and a batch
      without any gives a zero with a graph;
    - an anchor without positives was 0/0: it does not count;
    - labels and predictions of different sizes were compared position by position: both are aligned with
      the feature grid.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        anchors: int = 1024,
        hard_share: float = 0.5,
        semi_hard: float = 1.0,
        **shared: Any,
    ) -> None:
        """Make the contrast.

        Args:
            in_channels: C of the features.
            num_classes: K.
            anchors: total budget of pixels in a batch, balanced over its classes.
            hard_share: share of each class's anchors taken from wrongly predicted pixels where there are
                enough.
            semi_hard: share of each anchor's most similar negatives and least similar positives that is kept
                (the paper's semi-hard sampling; 1 keeps all, as its code does).
            shared: keywords of `Contrast`.
        """
        super().__init__(in_channels, num_classes, **shared)
        if anchors < 1:
            raise ValueError(f"anchors must be at least 1, not {anchors}")
        if not 0 < semi_hard <= 1:
            raise ValueError(f"semi_hard must lie in (0, 1], not {semi_hard}")
        self.anchors = anchors
        self.hard_share = hard_share
        self.semi_hard = semi_hard

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast the anchors of the batch with each other and with the keys of `more_keys`."""
        classes = nearest_classes(grid)
        hard = None if logits is None else wrongly_predicted(logits, classes)
        pixels = sample_pixels(
            features,
            classes,
            self.num_classes,
            self.anchors,
            generator,
            hard=hard,
            hard_share=self.hard_share,
            dtype=self.compute_dtype,
        )
        embedded = embed(self.embedding, pixels.rows)
        keys, key_classes = self.more_keys(features, classes, embedded, generator)
        pairs = info_nce(
            embedded,
            pixels.classes,
            torch.cat([embedded, keys]),
            torch.cat([pixels.classes, key_classes]),
            self.temperature,
            anchors_are_keys=True,
            hardest=self.semi_hard,
        )
        chosen = (pixels.classes >= 0).sum()
        return pairs.loss, {**describe(pairs), "hicl/hard_share": pixels.hard.sum() / chosen.clamp(min=1)}

    def more_keys(
        self, features: Tensor, classes: Tensor, embedded: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return keys (M, D) beyond the anchors ``embedded``, and their classes (M,), -1 for none."""
        return embedded[:0], classes.flatten()[:0]


class PixelMemoryContrast(PixelContrast):
    """Contrast sampled pixels with each other and with a memory of pixels and regions.

    Source: as `PixelContrast`, with the memory of the paper: per class one ring of pixel embeddings, a few
    sampled in every batch, and one of region embeddings, the mean of a class in an image. The memory joins
    the batch's own anchors as keys, and is used after it has been written once.

    Known faults of the published code that are not repeated, beside those named at `PixelContrast`:

    - pixels of another class were stored: what is stored carries the class it was sampled by;
    - the pointer moved on by one whatever had been written: it moves by what was written;
    - class 0 was left out: it is a class like the others;
    - labels were read at another stride than the keys: both come from the same grid.

    Ours: the memory takes what all processes store, and is the same on each.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, bank_size: int = 0, remembered: int = 256, **shared: Any
    ) -> None:
        """Make the contrast.

        Args:
            in_channels: C of the features.
            num_classes: K.
            bank_size: entries per class in each of the two rings; 0 takes 4,096 / K, at least 8.
            remembered: pixels of a batch that are stored, balanced over its classes.
            shared: keywords of `PixelContrast` and `Contrast`.
        """
        super().__init__(in_channels, num_classes, **shared)
        if remembered < 1:
            raise ValueError(f"remembered must be at least 1, not {remembered}")
        self.remembered = remembered
        self.memory = make_memory(num_classes, 2, self.dim, bank_size)

    def more_keys(
        self, features: Tensor, classes: Tensor, embedded: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Read the memory, then store pixels and regions of this batch."""
        keys, key_classes = recall(self.memory)
        keys = keys.to(embedded)
        if self.training:
            keys = keys.clone()  # the memory is overwritten below, before the backward pass
            self._remember(features, classes, generator)
        return keys, key_classes

    @torch.no_grad()
    def _remember(self, features: Tensor, classes: Tensor, generator: torch.Generator) -> None:
        pixels = sample_pixels(
            features, classes, self.num_classes, self.remembered, generator, dtype=self.compute_dtype
        )
        means, mean_classes = region_means(features.to(self.compute_dtype), classes, self.num_classes)
        rows = embed(self.embedding, torch.cat([pixels.rows, means]))
        kept = len(pixels.rows)
        remember(self.memory, [(rows[:kept], pixels.classes), (rows[kept:], mean_classes)])
