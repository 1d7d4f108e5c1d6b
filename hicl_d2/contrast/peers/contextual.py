"""Contextual contrast with boundary-aware negatives, as in Contextrast."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast.anchors import sample_balanced
from hicl_d2.contrast.fused import gather_cells
from hicl_d2.contrast.peers.pairs import info_nce
from hicl_d2.contrast.peers.rows import class_means, sample_pixels
from hicl_d2.contrast.peers.scales import Scale, ScaledContrast

__all__ = ["ContextualContrast", "boundary_distance", "nearest_to_boundary"]


class ContextualContrast(ScaledContrast):
    """Contrast one anchor per class and scale with pixels, with negatives from wrongly predicted pixels.

    Source: Sung, Kim, An, Lee, Lim, Myung, "Contextrast: Contextual Contrastive Learning for Semantic
    Segmentation", CVPR 2024, arXiv 2404.10633. At scale i the anchor of a class is the mean of its pixels,
    embedded; the anchors A of every scale below the coarsest (I) take up global context, normalised:
    low_weight x A_i + high_weight x A_I. Each anchor is contrasted with sampled pixels of its class against
    pixels of other classes that are wrongly predicted and lie nearest to the boundary of the wrong region
    (BANE). The loss is the mean over the scales.

    Our choices, where the public sources do not say or would cost more:

    - pixels are averaged before they are embedded, so that nothing dense is projected, and several scales
      come from one feature map where one is given;
    - a wrong region is the wrongly predicted pixels of one label, and distance in it is counted in cells,
      along the eight directions, up to ``reach``;
    - where there are fewer wrong pixels than the budget, or no logits, random pixels fill it up;
    - a batch without labelled pixels gives a zero with a graph, and a class that is missing at the coarsest
      scale keeps its own scale's anchor.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_classes: int,
        *,
        anchors: int = 1024,
        negatives: int = 1024,
        boundary_share: float = 0.5,
        reach: int = 8,
        low_weight: float = 0.5,
        high_weight: float = 0.5,
        **shared: Any,
    ) -> None:
        """Make the contrast.

        Args:
            in_channels: C of the feature map, or of each of several, finest first.
            num_classes: K.
            anchors: budget of positive pixels in a batch at each scale, balanced over the classes.
            negatives: the same for negative pixels.
            boundary_share: share, in [0, 1], of a class's wrongly predicted pixels, nearest to the boundary
                first, that negatives are taken from before any other pixel.
            reach: distance in cells beyond which all count as equally far.
            low_weight: weight of a scale's own anchor in the anchor that is used.
            high_weight: weight of the coarsest scale's anchor in it.
            shared: keywords of `ScaledContrast` and `Contrast`.
        """
        super().__init__(in_channels, num_classes, **shared)
        for name, value in (("anchors", anchors), ("negatives", negatives), ("reach", reach)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= boundary_share <= 1:
            raise ValueError(f"boundary_share must lie in [0, 1], not {boundary_share}")
        self.anchors = anchors
        self.negatives = negatives
        self.boundary_share = boundary_share
        self.reach = reach
        self.low_weight = low_weight
        self.high_weight = high_weight

    def contrast_scales(
        self, scales: list[Scale], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the contrast of the anchors with pixels over the scales."""
        representatives = [self._class_anchors(scale, position) for position, scale in enumerate(scales)]
        loss = self.embedding.output.bias.new_zeros(())
        figures: dict[str, Tensor] = {}
        for position, scale in enumerate(scales):
            anchors, present = self._with_context(
                representatives[position], representatives[-1], position == len(scales) - 1
            )
            positives = sample_pixels(
                scale.features,
                scale.classes,
                self.num_classes,
                self.anchors,
                generator,
                dtype=self.compute_dtype,
            )
            negative_rows, negative_classes, wrong = self._negatives(scale, generator)
            pairs = info_nce(
                anchors,
                torch.where(present, torch.arange(self.num_classes, device=present.device), -1),
                self.embed(positives.rows, position),
                positives.classes,
                self.temperature,
                negatives=self.embed(negative_rows, position),
                negative_classes=negative_classes,
            )
            loss = loss + pairs.loss / len(scales)
            figures |= {
                f"hicl/scale{position}/loss": pairs.loss.detach(),
                f"hicl/scale{position}/positive_similarity": pairs.positive_similarity,
                f"hicl/scale{position}/negative_similarity": pairs.negative_similarity,
                f"hicl/scale{position}/hard_share": wrong.sum() / (negative_classes >= 0).sum().clamp(min=1),
            }
            if position == 0:
                figures["hicl/anchors"] = pairs.anchors
        return loss, {"hicl/loss": loss.detach(), **figures}

    def _class_anchors(self, scale: Scale, position: int) -> tuple[Tensor, Tensor]:
        """Return the embedded mean of every class (K, D) and whether the class is present (K,) bool."""
        means, counts = class_means(scale.features, scale.classes, self.num_classes)
        return self.embed(means, position), counts > 0

    def _with_context(
        self, own: tuple[Tensor, Tensor], coarsest: tuple[Tensor, Tensor], is_coarsest: bool
    ) -> tuple[Tensor, Tensor]:
        """Mix the anchors of a scale with the coarsest scale's, where a class is in both."""
        anchors, present = own
        if is_coarsest:
            return own
        mixed = F.normalize(self.low_weight * anchors + self.high_weight * coarsest[0], dim=1)
        return torch.where(coarsest[1][:, None], mixed, anchors), present

    def _negatives(self, scale: Scale, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw negatives: features (N, C), classes (N,), -1 for empty places, and which are wrong boundary pixels."""
        special = torch.zeros_like(scale.classes, dtype=torch.bool)
        if scale.wrong is not None:
            special = nearest_to_boundary(
                scale.classes, scale.wrong, self.num_classes, self.boundary_share, self.reach
            )
        special = special.flatten()
        budget = min(self.negatives, len(special))
        sample = sample_balanced(
            scale.classes.flatten(), self.num_classes, budget, generator, special=special, share=1.0
        )
        rows = gather_cells(scale.features, sample.index, self.compute_dtype)
        return rows, sample.group, special[sample.index] & sample.valid


def boundary_distance(regions: Tensor, reach: int) -> Tensor:
    """Measure how deep in its region each cell lies: (B, h, w) int64, 1 at the boundary, at most ``reach``.

    A region is what has the same value in ``regions`` (B, h, w); steps go in eight directions, and the border
    of the map is no boundary.
    """
    values = regions[:, None].float()
    same = -F.max_pool2d(-values, 3, 1, 1) == F.max_pool2d(values, 3, 1, 1)
    inside = same.float()
    depth = 1 + inside
    for _ in range(reach - 2):
        inside = -F.max_pool2d(-inside, 3, 1, 1)
        depth = depth + inside
    return depth[:, 0].clamp(max=reach).long()


def nearest_to_boundary(classes: Tensor, wrong: Tensor, num_classes: int, share: float, reach: int) -> Tensor:
    """Mark, of each class's wrongly predicted cells, the ``share`` nearest to their region's boundary.

    Args:
        classes: (B, h, w) integer, -1 where unlabelled.
        wrong: (B, h, w) bool.
        num_classes: K.
        share: 0 to 1, rounded up to whole cells.
        reach: distances beyond it count as equal. Of equally near cells, the first in the batch are marked.

    Returns:
        (B, h, w) bool.
    """
    regions = torch.where(wrong & (classes >= 0), classes, num_classes)
    depth = boundary_distance(regions, reach)
    order = (regions.flatten() * (reach + 1) + depth.flatten()).argsort(stable=True)
    ordered = regions.flatten()[order]
    bounds = torch.searchsorted(ordered, torch.arange(num_classes + 1, device=ordered.device))
    wanted = (bounds.diff() * share).ceil().long()
    inside = ordered.clamp(max=num_classes - 1)
    rank = torch.arange(len(ordered), device=ordered.device) - bounds[inside]
    marked = (ordered < num_classes) & (rank < wanted[inside])
    return torch.zeros_like(marked).scatter(0, order, marked).view_as(wrong)
