"""The Hi-CL branch: multiscale candidates, pruned, contrasted with pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hicl_d2.contrast.anchors import Sample, choose_anchors, sample_balanced, wrongly_predicted
from hicl_d2.contrast.bank import ComponentBank
from hicl_d2.contrast.candidates import WindowLabels, count_labels, count_labels_plainly
from hicl_d2.contrast.collect import gather_rows, gathers
from hicl_d2.contrast.diagnostics import mean_similarities
from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level, make_levels
from hicl_d2.contrast.loss import Contrasted, contrast_fused, contrast_plainly
from hicl_d2.contrast.pairing import Columns, find_own, pair
from hicl_d2.contrast.pooling import gather_windows, gather_windows_plainly
from hicl_d2.contrast.pruning import ClassScores, Pruned, prune, touches_boundary

__all__ = ["Drawn", "HiCLBranch"]


class Drawn(NamedTuple):
    """Hold what was drawn from a batch.

    Attributes:
        anchors: A cells of the flattened (B, h, w), grouped by class.
        components: M windows, grouped by class x L + level; numbered level after level, each a flattened
            (B, rows, columns).
        hard: (B, h, w) bool, the cells that are predicted wrongly; None without logits.
        pruned: what pruning left of the candidates, by level.
    """

    anchors: Sample
    components: Sample
    hard: Tensor | None
    pruned: list[Pruned]


class _Step(NamedTuple):
    """Hold what a step's figures are made of."""

    drawn: Drawn
    result: Contrasted
    anchors: Tensor
    components: Tensor
    columns: Columns
    own: Tensor
    levels: Tensor


class HiCLBranch(Contrast):
    """Contrast pixels with components of several scales.

    Source: Jiang, He, Wang, Lu, Liu, "Hierarchical Contrastive Learning for Semantic Segmentation", IEEE TNNLS 36(6),
    2025, DOI 10.1109/TNNLS.2024.3491782, of which the abstract is public: multiscale candidates by pooling windows of
    several sizes, pruned by thresholds, contrasted with pixels. Every formula and default here is this project's.

    Alone, in plain PyTorch:

    >>> import torch
    >>> from hicl_d2.contrast import HiCLBranch
    >>> backbone = torch.nn.Conv2d(3, 32, kernel_size=3, stride=4, padding=1)
    >>> classifier = torch.nn.Conv2d(32, 5, kernel_size=1)
    >>> branch = HiCLBranch(in_channels=32, num_classes=5, windows=(1, 2, 4))
    >>> images, labels = torch.randn(2, 3, 64, 64), torch.arange(4).repeat_interleave(16).expand(2, 64, 64)
    >>> features = backbone(images)
    >>> output = branch(features, labels, classifier(features), seed=1)
    >>> (0.1 * output.loss).backward()
    >>> bool(output.loss > 0), int(output.diagnostics["hicl/anchors"])
    (True, 512)
    """

    # Every anchor passes through the embedding, and there is always a row, if an empty one.
    reaches_all = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        ignore_value: int = 255,
        windows: Sequence[int] = (1, 2, 4, 8, 16),
        overlap: bool = False,
        purity: Sequence[float] = (0.9,),
        coverage: Sequence[float] = (0.5,),
        confidence_low: Sequence[float] = (0.0,),
        confidence_high: Sequence[float] = (1.0,),
        level_weights: Sequence[float] = (1.0,),
        level_loss: str = "joint",
        detach_components: bool = False,
        anchors: int = 1024,
        components: int = 2048,
        hard_share: float = 0.5,
        boundary_negatives: float = 0.0,
        positive_focus: float = 0.0,
        temperature: float = 0.1,
        dim: int = 256,
        hidden_dim: int = 256,
        embedding_layers: int = 2,
        bank_size: int = 0,
        bank_start: int = 0,
        gather: bool = False,
        implementation: str = "fused",
    ) -> None:
        """Make the branch. Sequences of one value hold for every window, others have one value per window.

        Args:
            in_channels: C of the features.
            num_classes: K; labels are 0 to K - 1.
            ignore_value: label of pixels without a class.
            windows: sides of the windows in cells, ascending; one level each. (1,) is pixel-to-pixel contrast.
            overlap: windows start half a window apart.
            purity: least share of a candidate's labelled pixels that its class has; 0 is off.
            coverage: least share of its pixels that is labelled; 0 is off.
            confidence_low: least mean predicted probability of its class; 0 is off.
            confidence_high: greatest; 1 is off.
            level_weights: weight of a level's positives (joint) or of its loss (separate); 0 switches a level off.
            level_loss: "joint", one loss over the components of all levels, or "separate", the mean of one per level.
            detach_components: no gradient passes through components.
            anchors: budget of anchors for the batch.
            components: budget of components for the batch.
            hard_share: share of a class's anchors taken from wrongly predicted cells, where logits are given.
            boundary_negatives: share of the components of each level and class taken from windows that touch another
                class, as far as there are; 0 draws without looking.
            positive_focus: a positive weighs (1 - similarity) to this power; 0 weighs all alike.
            temperature: of the softmax over similarities.
            dim: width of the embedding.
            hidden_dim: width of its hidden layers.
            embedding_layers: its linear layers; 1 is a projection.
            bank_size: components remembered per class and level; 0 is none.
            bank_start: training steps before those are used.
            gather: contrast with the components of all processes of a step.
            implementation: "fused", or "textbook", the same loss written out plainly.

        Raises ValueError for values out of range.
        """
        super().__init__(
            in_channels,
            num_classes,
            ignore_value=ignore_value,
            temperature=temperature,
            dim=dim,
            hidden_dim=hidden_dim,
            embedding_layers=embedding_layers,
        )
        self.levels = make_levels(
            windows, purity, coverage, confidence_low, confidence_high, level_weights, overlap=overlap
        )
        _check_choices(level_loss, implementation, hard_share, boundary_negatives, positive_focus)
        if anchors < 1 or components < 1 or bank_size < 0:
            raise ValueError(
                f"budgets must be at least 1: {anchors} anchors, {components} components, bank {bank_size}"
            )
        self.separate = level_loss == "separate"
        self.detach_components = detach_components
        self.anchor_budget = anchors
        self.component_budget = components
        self.hard_share = hard_share
        self.boundary_negatives = boundary_negatives
        self.positive_focus = positive_focus
        self.gather = gather
        self.plain = implementation == "textbook"
        self.uniform = len({level.weight for level in self.levels}) == 1
        # On the device once and for all: making it in a step would be a copy that waits for the device.
        weights = torch.tensor([level.weight for level in self.levels])
        self.register_buffer("level_weights", weights, persistent=False)
        self.level_weights: Tensor
        self.bank = (
            ComponentBank(num_classes, len(self.levels), bank_size, dim, bank_start)
            if bank_size > 0
            else None
        )

    def extra_repr(self) -> str:
        """Describe the levels and budgets."""
        windows = tuple(level.window for level in self.levels)
        return f"windows={windows}, anchors={self.anchor_budget}, components={self.component_budget}"

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, _Step]:
        """Draw anchors and components, embed them, and contrast them. See `Contrast.contrast`."""
        drawn = self.draw(grid, logits, generator)
        anchors, components = self._embed(features, drawn)
        columns = self._columns(drawn.components)
        own = find_own(drawn.anchors, drawn.components, self._cells(grid))
        current, current_columns = components.detach(), columns
        segments, across = [columns], self.gather and gathers()
        if across:
            M, first = len(components), dist.get_rank() * len(components)
            components = gather_rows(components)
            columns = Columns(gather_rows(columns.classes), gather_rows(columns.levels))
            own = torch.where(own < M, own + first, len(components))
            segments = [
                Columns(*parts)
                for parts in zip(columns.classes.split(M), columns.levels.split(M), strict=True)
            ]
        remembered = components[:0].detach()
        if self.bank is not None:
            remembered, old = self.bank.recall()
            remembered = remembered.to(components.dtype)
            own = torch.where(own < len(components), own, len(components) + len(remembered))
            segments = [*segments, old]
        pairing = pair(
            drawn.anchors.group,
            segments,
            own,
            self.num_classes,
            self.level_weights.to(components.dtype),
            separate=self.separate,
            uniform=self.uniform,
            across_ranks=across,
        )
        implementation = contrast_plainly if self.plain else contrast_fused
        result = implementation(
            anchors, components, remembered, pairing, self.temperature, self.positive_focus
        )
        if self.bank is not None and self.training:
            self.bank.remember(current, current_columns)
        levels = torch.cat([segment.levels for segment in segments])
        return result.loss, _Step(drawn, result, anchors, components, columns, own, levels)

    @torch.no_grad()
    def draw(self, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator) -> Drawn:
        """Find the candidates of every level, prune them, and draw anchors and components from what is left.

        Args and raises: as in `Contrast.contrast`.
        """
        first = self.levels[0]
        single = Level(1, 1, first.purity, first.coverage, (0.0, 1.0), 1.0)
        with_cells = self.levels if first.window == 1 else (single, *self.levels)
        statistics = (count_labels_plainly if self.plain else count_labels)(grid, with_cells)
        cells, windows = statistics[0], statistics[len(with_cells) - len(self.levels) :]
        scores = None if logits is None else ClassScores(logits)
        pruned = [
            prune(grid, labels, level, scores) for labels, level in zip(windows, self.levels, strict=True)
        ]
        # Anchors pass the same thresholds, but for confidence: hard ones are wanted.
        anchor_classes = (pruned[0] if first == single else prune(grid, cells, single)).classes
        hard = None if logits is None else wrongly_predicted(logits, anchor_classes)
        anchors = choose_anchors(
            anchor_classes,
            self.num_classes,
            self._budget(self.anchor_budget, anchor_classes.numel()),
            generator,
            hard=hard,
            hard_share=self.hard_share,
        )
        return Drawn(anchors, self._choose_components(cells, pruned, generator), hard, pruned)

    def _choose_components(
        self, cells: WindowLabels, pruned: list[Pruned], generator: torch.Generator
    ) -> Sample:
        K, L = self.num_classes, len(self.levels)
        group = torch.cat([part.winners.flatten() for part in pruned]).mul_(L)
        for k, of_level in enumerate(group.split([part.kept.numel() for part in pruned])[1:], start=1):
            of_level += k
        group = torch.where(torch.cat([part.kept.flatten() for part in pruned]), group, -1)
        special = None
        if self.boundary_negatives > 0.0:
            special = torch.cat([touches_boundary(cells, level).flatten() for level in self.levels])
        return sample_balanced(
            group,
            K * L,
            self._budget(self.component_budget, group.numel()),
            generator,
            special=special,
            share=self.boundary_negatives,
        )

    def _budget(self, budget: int, candidates: int) -> int:
        """Return the size of a sample: the budget, or fewer where a map has fewer and no other process waits."""
        return budget if gathers() else max(1, min(budget, candidates))

    def _cells(self, grid: LabelGrid) -> int:
        """Return how many windows of one cell there are."""
        return grid.batch_size * grid.size[0] * grid.size[1] if self.levels[0].window == 1 else 0

    def _columns(self, components: Sample) -> Columns:
        L = len(self.levels)
        classes = torch.where(components.valid, components.group // L, self.num_classes)
        return Columns(classes, torch.where(components.valid, components.group % L, 0))

    def _embed(self, features: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Embed anchors and components: (A, dim) and (M, dim)."""
        take = gather_windows_plainly if self.plain else gather_windows
        embed = self.embedding.embed_plainly if self.plain else self.embedding
        cells, windows = drawn.anchors.index, drawn.components.index
        if not self.detach_components:
            rows = take(features, cells, windows, self.levels, self.compute_dtype)
            anchors, components = embed(rows).split([len(cells), len(windows)])
            return anchors, components
        with torch.no_grad():
            components = embed(take(features, cells[:0], windows, self.levels, self.compute_dtype))
        return embed(take(features, cells, windows[:0], (), self.compute_dtype)), components

    @torch.no_grad()
    def describe(self, step: _Step) -> dict[str, Tensor]:
        """Name the figures of a step, per level ``w<window>``."""
        drawn, result, L = step.drawn, step.result, len(self.levels)
        positive, negative = mean_similarities(
            step.anchors, drawn.anchors.group, step.components, step.columns, step.own, self.num_classes, L
        )
        by_level = result.component_loss.new_zeros(2, L)
        by_level[0].index_add_(0, step.levels, result.component_loss)
        by_level[1].index_add_(0, step.levels, result.component_weight)
        losses = by_level[0] / torch.where(by_level[1] > 0, by_level[1], 1.0)
        anchors, valid = drawn.anchors.index, drawn.anchors.valid
        number, hard = valid.sum(), torch.zeros_like(losses[0])
        if drawn.hard is not None:
            hard = (drawn.hard.flatten()[anchors] & valid).sum() / number.clamp(min=1)
        figures = {"hicl/loss": result.loss.detach(), "hicl/anchors": number, "hicl/hard_share": hard}
        for k, level in enumerate(self.levels):
            name = f"hicl/w{level.window}"
            figures.update({f"{name}/{key}": value for key, value in drawn.pruned[k].counts().items()})
            figures[f"{name}/positive_similarity"] = positive[k]
            figures[f"{name}/negative_similarity"] = negative[k]
            figures[f"{name}/loss"] = losses[k]
        return figures


def _check_choices(level_loss: str, implementation: str, *shares: float) -> None:
    for name, value, choices in (
        ("level_loss", level_loss, ("joint", "separate")),
        ("implementation", implementation, ("fused", "textbook")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be {' or '.join(choices)}, not {value!r}")
    for name, share in zip(("hard_share", "boundary_negatives"), shares, strict=False):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must lie in 0 to 1, not {share}")
    if shares[2] < 0.0:
        raise ValueError(f"positive_focus must not be negative, not {shares[2]}")
