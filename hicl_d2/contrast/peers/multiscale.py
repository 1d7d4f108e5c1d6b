"""Multi-scale and cross-scale contrast, as in MS_CS."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicl_d2.contrast.peers.pairs import info_nce
from hicl_d2.contrast.peers.rows import sample_pixels
from hicl_d2.contrast.peers.scales import Scale, ScaledContrast

__all__ = ["MultiScaleContrast"]


class MultiScaleContrast(ScaledContrast):
    """Contrast pixels within each of several scales, and those of the finest with those of the two coarsest.

    Source: Pissas, Ravasio, Da Cruz, Bergeles, "Multi-scale and Cross-scale Contrastive Learning for Semantic
    Segmentation", ECCV 2022, arXiv 2203.13409 (MS_CS). The loss is the sum of weight x InfoNCE within every
    scale, and of cross_weight x InfoNCE with anchors from the finest scale and keys from the coarsest, and
    from the one before it where there are three scales. The paper reads several stages of an encoder; given
    one feature map, this pools it.

    Known faults of the published code that are not repeated:

    - the rarest class capped every class: here a class gives what it has, and the others divide the rest of
      the budget;
    - no maximum was subtracted before the exponential, so half precision overflowed: float32 and log-sum-exp;
    - a batch without a valid class crashed: it is a zero with a graph.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_classes: int,
        *,
        anchors: int = 1024,
        scale_weights: Sequence[float] = (1.0, 0.7, 0.4, 0.1),
        cross_weight: float = 1.0,
        **shared: Any,
    ) -> None:
        """Make the contrast.

        Args:
            in_channels: C of the feature map, or of each of several, finest first.
            num_classes: K.
            anchors: budget of pixels in a batch at each scale, balanced over the classes.
            scale_weights: weight of the contrast within each scale, finest first (the paper's by default).
            cross_weight: weight of each contrast between scales.
            shared: keywords of `ScaledContrast` and `Contrast`.
        """
        super().__init__(in_channels, num_classes, **shared)
        if anchors < 1:
            raise ValueError(f"anchors must be at least 1, not {anchors}")
        count = len(self.scales) if isinstance(in_channels, int) else len(in_channels)
        if len(scale_weights) != count:
            raise ValueError(f"scale_weights must be {count}, one for each scale, not {len(scale_weights)}")
        self.anchors = anchors
        self.scale_weights = tuple(scale_weights)
        self.cross_weight = cross_weight

    def contrast_scales(
        self, scales: list[Scale], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the contrasts within the scales and across them."""
        samples = []
        for position, scale in enumerate(scales):
            pixels = sample_pixels(
                scale.features,
                scale.classes,
                self.num_classes,
                self.anchors,
                generator,
                dtype=self.compute_dtype,
            )
            samples.append((self.embed(pixels.rows, position), pixels.classes))
        loss = self.embedding.output.bias.new_zeros(())
        figures: dict[str, Tensor] = {}
        for position, ((embedded, classes), weight) in enumerate(
            zip(samples, self.scale_weights, strict=False)
        ):
            pairs = info_nce(embedded, classes, embedded, classes, self.temperature, anchors_are_keys=True)
            loss = loss + weight * pairs.loss
            figures |= {
                f"hicl/scale{position}/loss": pairs.loss.detach(),
                f"hicl/scale{position}/positive_similarity": pairs.positive_similarity,
                f"hicl/scale{position}/negative_similarity": pairs.negative_similarity,
            }
            if position == 0:
                figures["hicl/anchors"] = pairs.anchors
        for position in range(max(1, len(samples) - 2), len(samples)):
            pairs = info_nce(*samples[0], *samples[position], self.temperature)
            loss = loss + self.cross_weight * pairs.loss
            figures[f"hicl/cross{position}/loss"] = pairs.loss.detach()
        return loss, {"hicl/loss": loss.detach(), **figures}
