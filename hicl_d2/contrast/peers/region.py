"""Region contrast, as in RegionContrast."""

from typing import Any

import torch
from torch import Tensor

from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.fused import embed
from hicl_d2.contrast.grid import LabelGrid, nearest_classes
from hicl_d2.contrast.peers.memory import make_memory, recall, remember
from hicl_d2.contrast.peers.pairs import describe, info_nce
from hicl_d2.contrast.peers.rows import region_means, sample_pixels

__all__ = ["RegionContrast"]


class RegionContrast(Contrast):
    """Contrast pixels, or regions, with region centres of the batch and of earlier batches.

    Source: Hu, Cui, Wang, "Region-Aware Contrastive Learning for Semantic Segmentation", ICCV 2021
    (RegionContrast). A region centre is the mean feature of one class in one image; every class remembers the
    centres of earlier images.

    Known faults of the published code that are not repeated:

    - its loss was no InfoNCE, for the products were never summed over the channels: here they are inner
      products of embeddings of length one;
    - centres were taken over predicted classes, hence mixed early on: they are taken over labels, ignored
      pixels left out;
    - the memory began with random vectors that counted as negatives: an empty place is no key;
    - the memory's pointer advanced by the batch size although one entry was written: it advances by what was
      written.

    Ours: pixels are the queries by default, and centres are embedded after averaging, by the head that all
    contrasts share.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        queries: str = "pixels",
        anchors: int = 1024,
        bank_size: int = 0,
        **shared: Any,
    ) -> None:
        """Make the contrast.

        Args:
            in_channels: C of the features.
            num_classes: K.
            queries: "pixels", sampled and balanced over the classes, or "regions", the centres of the batch.
            anchors: total budget of pixels in a batch; not used for regions.
            bank_size: centres remembered per class; 0 takes 4,096 / K, at least 8.
            shared: keywords of `Contrast`.
        """
        super().__init__(in_channels, num_classes, **shared)
        if queries not in ("pixels", "regions"):
            raise ValueError(f'queries must be "pixels" or "regions", not {queries!r}')
        if anchors < 1:
            raise ValueError(f"anchors must be at least 1, not {anchors}")
        self.queries = queries
        self.anchors = anchors
        self.memory = make_memory(num_classes, 1, self.dim, bank_size)

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast the queries with the centres of the batch and of the memory, and remember the batch's."""
        classes = nearest_classes(grid)
        means, centre_classes = region_means(features.to(self.compute_dtype), classes, self.num_classes)
        centres = embed(self.embedding, means)
        if self.queries == "regions":
            queries, query_classes = centres, centre_classes
        else:
            pixels = sample_pixels(
                features, classes, self.num_classes, self.anchors, generator, dtype=self.compute_dtype
            )
            queries, query_classes = embed(self.embedding, pixels.rows), pixels.classes
        remembered, remembered_classes = recall(self.memory)
        pairs = info_nce(
            queries,
            query_classes,
            torch.cat([centres, remembered.to(centres)]),
            torch.cat([centre_classes, remembered_classes]),
            self.temperature,
            anchors_are_keys=self.queries == "regions",
        )
        if self.training:
            remember(self.memory, [(centres, centre_classes)])
        return pairs.loss, describe(pairs)
