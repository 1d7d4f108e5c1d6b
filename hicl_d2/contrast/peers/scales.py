"""Base of the contrasts that read features at several scales."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.contrast.anchors import wrongly_predicted
from hicl_d2.contrast.embedding import EmbeddingHead
from hicl_d2.contrast.frame import Contrast, ContrastOutput, zero_with_graph
from hicl_d2.contrast.fused import embed
from hicl_d2.contrast.grid import LabelGrid, align_labels, at_middle, nearest_classes, resize_logits

__all__ = ["Scale", "ScaledContrast"]


class Scale(NamedTuple):
    """Hold one scale of a batch.

    Attributes:
        features: (B, C, h, w), float32 or float64.
        classes: (B, h, w) int64, the class at the middle of each cell; -1 where it is unlabelled.
        wrong: (B, h, w) bool, where the prediction is another class; None without logits.
    """

    features: Tensor
    classes: Tensor
    wrong: Tensor | None


class ScaledContrast(Contrast):
    """Base of the contrasts over several scales. One implements `contrast_scales`.

    The scales are one feature map pooled by several factors, under one embedding head, or several given maps,
    finest first, with a head each.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_classes: int,
        *,
        scales: Sequence[int] = (1, 2, 4, 8),
        **shared: Any,
    ) -> None:
        """Make what the contrasts over scales share.

        Args:
            in_channels: C of the feature map, or of each of several, finest first.
            num_classes: K.
            scales: pooling factors of one feature map, ascending; not used with several maps.
            shared: keywords of `Contrast`.
        """
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        super().__init__(channels[0], num_classes, **shared)
        if not scales or list(scales) != sorted(set(scales)) or scales[0] < 1:
            raise ValueError(f"scales must be ascending whole numbers from 1 on, not {tuple(scales)}")
        self.scales = tuple(scales)
        self.coarser_embeddings = nn.ModuleList(map(self.embedding.for_channels, channels[1:]))

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        *,
        seed: int | None = None,
        describe: bool = True,
    ) -> ContrastOutput:
        """Compute the loss of one batch as `Contrast.forward` does; maps come finest first."""
        if isinstance(features, Tensor):
            return super().forward(features, labels, logits, seed=seed, describe=describe)
        self._check_maps(features, labels, logits)
        with torch.autocast(labels.device.type, enabled=False):
            generator = self.make_generator(labels.device, seed)
            scales = [self._given_scale(feature, labels, logits) for feature in features]
            loss, diagnostics = self.contrast_scales(scales, generator)
            return ContrastOutput(loss + zero_with_graph(self), diagnostics if describe else {})

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pool the feature map to every scale that fits on it, and contrast those."""
        return self.contrast_scales(
            self._pooled_scales(features.to(self.compute_dtype), grid, logits), generator
        )

    def contrast_scales(
        self, scales: list[Scale], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss (0-d) over ``scales``, finest first, possibly none; return it with its diagnostics."""
        raise NotImplementedError

    def embed(self, rows: Tensor, scale: int) -> Tensor:
        """Embed feature rows (N, C) of the given scale: (N, D), each of length one."""
        coarser = scale > 0 and len(self.coarser_embeddings) > 0
        head = self.coarser_embeddings[scale - 1] if coarser else self.embedding
        return embed(cast(EmbeddingHead, head), rows)

    def _pooled_scales(self, features: Tensor, grid: LabelGrid, logits: Tensor | None) -> list[Scale]:
        scales = []
        pooled, factor = features, 1
        for window in self.scales:
            if window > min(grid.size):
                break
            if window % factor:  # no multiple of the last one: start from the map itself again
                pooled, factor = features, 1
            pooled = F.avg_pool2d(pooled, window // factor) if window > factor else pooled
            factor = window
            classes = nearest_classes(grid, window)
            middle = None if logits is None else at_middle(logits, window, window // 2)
            scales.append(
                Scale(pooled, classes, None if middle is None else wrongly_predicted(middle, classes))
            )
        return scales

    def _given_scale(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> Scale:
        size = (features.shape[2], features.shape[3])
        classes = nearest_classes(align_labels(labels, size, self.num_classes, self.ignore_value))
        wrong = None if logits is None else wrongly_predicted(resize_logits(logits, size), classes)
        return Scale(features.to(self.compute_dtype), classes, wrong)

    def _check_maps(self, features: Sequence[Tensor], labels: Tensor, logits: Tensor | None) -> None:
        channels = [self.in_channels, *(head.in_channels for head in self.coarser_embeddings)]
        if [feature.shape[1] for feature in features if feature.dim() == 4] != channels:
            shapes = ", ".join(str(tuple(feature.shape)) for feature in features)
            raise ValueError(
                f"features must be maps of {channels} channels, finest first, not {shapes or 'none'}"
            )
        self._check(features[0], labels, logits)
