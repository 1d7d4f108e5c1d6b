"""The Hi-CL branch: multiscale candidates, pruned, contrasted with pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hicl_d2.contrast.anchors import Sample, choose_anchors, sample_balanced, wrongly_predicted
from hicl_d2.contrast.bank import ComponentBank
from hicl_d2.contrast.candidates import WindowLabels, middle_labels
from hicl_d2.contrast.checks import check_number, check_whole
from hicl_d2.contrast.class_pooling import find_candidates, gather_class_windows
from hicl_d2.contrast.components import Components
from hicl_d2.contrast.diagnostics import mean_similarities
from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level, Values, make_levels
from hicl_d2.contrast.loss import Contrasted
from hicl_d2.contrast.operations import OPERATIONS, Operations
from hicl_d2.contrast.pairing import Pairing, pair
from hicl_d2.contrast.processes import is_distributed
from hicl_d2.contrast.pruning import Pruned, prune, touches_boundary

__all__ = ["Drawn", "HiCLBranch"]


class Drawn(NamedTuple):
    """Hold what was drawn from a batch.

    Attributes:
        anchors: A cells of the flattened (B, h, w), grouped by class.
        components: M windows, grouped by class x L + level. They are numbered level after level, each level as a flattened
            (B, rows, columns); with class pooling by their first cells (`gather_class_windows`).
        classes: (B, h, w) integer, the class of every cell that may be an anchor; -1 for other cells.
        hard: (B, h, w) bool, the cells that are predicted wrongly; None without logits.
        pruned: what each criterion leaves of the candidates, by level.
    """

    anchors: Sample
    components: Sample
    classes: Tensor
    hard: Tensor | None
    pruned: list[Pruned]


class _Step(NamedTuple):
    """Hold what the diagnostics of a step are made of."""

    drawn: Drawn
    anchors: Tensor
    components: Components
    pairing: Pairing
    result: Contrasted


class HiCLBranch(Contrast):
    """Contrast pixels with components of several scales.

    Source: Jiang, He, Wang, Lu, Liu, "Hierarchical Contrastive Learning for Semantic Segmentation", IEEE TNNLS 36(6),
    2025, DOI 10.1109/TNNLS.2024.3491782, of which the abstract is public: multiscale candidates by pooling windows of
    several sizes, pruned by thresholds, contrasted with pixels. Every formula and default here is this project's.

    Examples:
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

    # At least one row is embedded in every step, padding if nothing was drawn, so that every parameter gets a gradient.
    reaches_all = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        ignore_value: int = 255,
        windows: Sequence[int] = (1, 2, 4, 8),
        overlap: bool = False,
        pooling: str = "window",
        cell_class: str = "middle",
        purity: Values = (0.9,),
        coverage: Values = (0.5,),
        confidence_low: Values = (0.0,),
        confidence_high: Values = (1.0,),
        level_weights: Values = (1.0,),
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
        """Make the branch. A number, or a sequence of one, holds for every window; other sequences have one value per window.

        Args:
            in_channels: C of the features.
            num_classes: K; labels are 0 to K - 1.
            ignore_value: label of pixels without a class.
            windows: sides of the windows in cells, ascending; one level each. (1,) is pixel-to-pixel contrast.
            overlap: windows start half a window apart.
            pooling: "window": a component is the mean over a window, whose class is its most frequent one. "class": a
                window has a component for each class that has at least as many cells in it as the window's side, the mean over
                these cells; purity and coverage are then asked of no window larger than a cell, and no confidence.
            cell_class: "middle": a single cell has the class of its middle pixel, as in pixel contrast, so that cells on a
                boundary take part; larger windows are counted pixel by pixel all the same. "majority": it has the class of
                most of its pixels, and must be pure and covered.
            purity: least share of a candidate's labelled pixels that its class must have; 0 switches the criterion off.
            coverage: least share of its pixels that must be labelled; 0 switches it off.
            confidence_low: least mean predicted probability of its class; 0 switches it off.
            confidence_high: greatest mean predicted probability of its class; 1 switches it off.
            level_weights: weight of a level's positives (joint) or of its loss (separate); 0 switches a level off.
            level_loss: "joint", one loss over the components of all levels, or "separate", the mean of one per level.
            detach_components: no gradient passes through components.
            anchors: budget of anchors for the batch.
            components: budget of components for the batch.
            hard_share: share of a class's anchors drawn from wrongly predicted cells, where logits are given.
            boundary_negatives: share of the components of each level and class drawn from windows that touch another
                class, as far as there are enough; 0 draws from all alike.
            positive_focus: a positive is weighted by (1 - similarity) to this power; 0 weighs all alike.
            temperature: of the softmax over similarities.
            dim: width of the embedding.
            hidden_dim: width of its hidden layers.
            embedding_layers: its linear layers; 1 is a projection.
            bank_size: components remembered per class and level; 0 is no bank.
            bank_start: training steps before the bank is used.
            gather: contrast with the components of all processes of a step.
            implementation: "fused", or "textbook", the same method written plainly.

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
        _check_choices(
            level_loss=level_loss, implementation=implementation, pooling=pooling, cell_class=cell_class
        )
        check_number(0, 1, hard_share=hard_share, boundary_negatives=boundary_negatives)
        check_number(0, positive_focus=positive_focus)
        check_whole(1, anchors=anchors, components=components)
        check_whole(0, bank_size=bank_size, bank_start=bank_start)
        self.by_class = pooling == "class"
        if self.by_class and (
            boundary_negatives > 0 or any(level.confidence != (0.0, 1.0) for level in self.levels)
        ):
            raise ValueError("pooling class knows neither confidence nor boundary_negatives; leave them off")
        self.cell_class = cell_class
        self.separate = level_loss == "separate"
        self.detach_components = detach_components
        self.anchor_budget = anchors
        self.component_budget = components
        self.hard_share = hard_share
        self.boundary_negatives = boundary_negatives
        self.positive_focus = positive_focus
        self.gather = gather
        self.implementation = implementation
        self.uniform = len({level.weight for level in self.levels}) == 1
        # A buffer, so that no step copies it to the device and waits for it.
        self.level_weights: Tensor
        self.register_buffer("level_weights", _weights(self.levels), persistent=False)
        self.register_load_state_dict_post_hook(_restore_weights)
        self.bank = (
            ComponentBank(num_classes, len(self.levels), bank_size, dim, bank_start)
            if bank_size > 0
            else None
        )

    def extra_repr(self) -> str:
        """Describe the levels and budgets."""
        windows = tuple(level.window for level in self.levels)
        return f"windows={windows}, anchors={self.anchor_budget}, components={self.component_budget}"

    @property
    def operations(self) -> Operations:
        """Return the functions of the chosen implementation."""
        return OPERATIONS[self.implementation]

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, _Step]:
        """Draw anchors and components, embed them, and contrast them. See `Contrast.contrast`."""
        drawn = self.draw(grid, logits, generator)
        anchors, new = self._embed(features, drawn, grid.num_cells)
        components = new.gather() if self.gather else new
        if self.bank is not None:
            components = components.join(self.bank.recall())
        pairing = pair(
            drawn.anchors,
            components,
            grid.num_cells,
            self.num_classes,
            self.level_weights.to(anchors.dtype),
            separate=self.separate,
            uniform=self.uniform,
            across_processes=self.gather and is_distributed(),
        )
        result = self.operations.contrast(anchors, components, pairing, self.temperature, self.positive_focus)
        if self.bank is not None and self.training:
            self.bank.remember(new)
        return result.loss, _Step(drawn, anchors, components, pairing, result)

    @torch.no_grad()
    def draw(self, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator) -> Drawn:
        """Count the labels of every level's candidates, prune them, and draw anchors and components from what is left.

        Args and raises: as in `Contrast.contrast`.
        """
        first = self.levels[0]
        cell = Level.cell(first.purity, first.coverage)
        with_cells = self.levels if first.window == 1 else (cell, *self.levels)
        if self.by_class:
            with_cells = (cell,)
        statistics = self.count_labels(grid, with_cells)
        cells = statistics[0]
        pruned: list[Pruned] = []
        if not self.by_class:
            scores = None if logits is None else self.operations.ClassScores(logits)
            windows = statistics[len(with_cells) - len(self.levels) :]
            pruned = [
                prune(grid, labels, level, scores) for labels, level in zip(windows, self.levels, strict=True)
            ]
        # Anchors pass the first level's thresholds, but for confidence: it would drop the hard ones.
        anchor_classes = (pruned[0] if pruned and first == cell else prune(grid, cells, cell)).classes
        if self.by_class:
            pruned = [find_candidates(anchor_classes, self.num_classes, level) for level in self.levels]
        hard = None if logits is None else wrongly_predicted(logits, anchor_classes)
        anchors = choose_anchors(
            anchor_classes,
            self.num_classes,
            self._sample_size(self.anchor_budget, anchor_classes.numel()),
            generator,
            hard=hard,
            hard_share=self.hard_share,
        )
        components = self._choose_components(cells, pruned, generator)
        return Drawn(anchors, components, anchor_classes, hard, pruned)

    def count_labels(self, grid: LabelGrid, levels: Sequence[Level]) -> list[WindowLabels]:
        """Count the labels in the windows of ``levels`` (ascending); those of single cells as ``cell_class`` says."""
        if self.cell_class == "majority":
            return self.operations.count_labels(grid, levels)
        larger = [level for level in levels if level.window > 1]
        cells = [middle_labels(grid)] * (len(levels) - len(larger))
        return cells + (self.operations.count_labels(grid, larger) if larger else [])

    def _choose_components(
        self, cells: WindowLabels, pruned: list[Pruned], generator: torch.Generator
    ) -> Sample:
        """Draw components from the windows that are kept, balanced over class and level."""
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
            self._sample_size(self.component_budget, group.numel()),
            generator,
            special=special,
            share=self.boundary_negatives,
        )

    def _sample_size(self, budget: int, candidates: int) -> int:
        """Return the budget, or fewer where a map has fewer candidates: on processes that gather, sizes must be equal."""
        return budget if is_distributed() else max(1, min(budget, candidates))

    def _embed(self, features: Tensor, drawn: Drawn, num_cells: int) -> tuple[Tensor, Components]:
        """Embed what was drawn: anchors (A, dim) and M components."""
        chosen, L = drawn.components, len(self.levels)
        cells = None
        if self.levels[0].window == 1:  # the windows of the first level are the cells, and are numbered alike
            cells = torch.where(chosen.valid & (chosen.index < num_cells), chosen.index, -1)
        anchors, rows = self._embed_rows(features, drawn)
        return anchors, Components(
            rows, chosen.group // L, torch.where(chosen.valid, chosen.group % L, 0), cells
        )

    def _embed_rows(self, features: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Take cells and components out of the features and embed them: (A, dim) and (M, dim)."""
        embed, cells = self.operations.embed, drawn.anchors.index
        if not self.detach_components:
            rows = embed(self.embedding, self._take(features, cells, drawn))
            anchors, components = rows.split([len(cells), len(drawn.components.index)])
            return anchors, components
        with torch.no_grad():
            components = embed(self.embedding, self._take(features, cells[:0], drawn))
        take, index = self.operations.gather_windows, drawn.components.index
        return embed(self.embedding, take(features, cells, index[:0], (), self.compute_dtype)), components

    def _take(self, features: Tensor, cells: Tensor, drawn: Drawn) -> Tensor:
        """Take ``cells`` (A,) and the components that were drawn out of the features: (A + M, C)."""
        dtype, (index, _, valid) = self.compute_dtype, drawn.components
        if self.by_class:
            return gather_class_windows(
                features, cells, index, valid, drawn.classes, self.num_classes, self.levels, dtype
            )
        return self.operations.gather_windows(features, cells, index, self.levels, dtype)

    @torch.no_grad()
    def describe(self, step: _Step) -> dict[str, Tensor]:
        """Name the figures of a step, per level ``w<window>``."""
        drawn, result, components, L = step.drawn, step.result, step.components, len(self.levels)
        M = len(components.rows)  # without those of the bank
        positive, negative = mean_similarities(
            step.anchors,
            drawn.anchors.group,
            components.rows,
            components.classes[:M],
            components.levels[:M],
            step.pairing.own,
            self.num_classes,
            L,
        )
        by_level = result.component_loss.new_zeros(2, L)
        by_level[0].index_add_(0, components.levels, result.component_loss)
        by_level[1].index_add_(0, components.levels, result.component_weight)
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


def _check_choices(**chosen: str) -> None:
    choices = {
        "level_loss": ("joint", "separate"),
        "implementation": tuple(OPERATIONS),
        "pooling": ("window", "class"),
        "cell_class": ("majority", "middle"),
    }
    for name, value in chosen.items():
        if value not in choices[name]:
            raise ValueError(f"{name} must be {' or '.join(choices[name])}, not {value!r}")


def _weights(levels: Sequence[Level]) -> Tensor:
    return torch.tensor([level.weight for level in levels])


def _restore_weights(branch: nn.Module, keys: object) -> None:
    """Make the weights anew, which no state dict has: a branch made on the meta device gets them with its parameters."""
    assert isinstance(branch, HiCLBranch)
    parameter = branch.embedding.output.weight
    branch.level_weights = _weights(branch.levels).to(parameter.device, branch.level_weights.dtype)
