"""Hi-CL written as loops: one pixel, one window, one anchor at a time, in the words of its definition.

Nothing here shares code with the package but the parameters of its embedding head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

__all__ = [
    "Entry",
    "Settings",
    "Window",
    "embed",
    "find_anchor_cells",
    "find_windows",
    "loss_of",
    "mean_feature",
]


@dataclass(frozen=True)
class Settings:
    """One level's thresholds, as the definition names them; ``middle``: cells have the class of their middle pixel."""

    window: int
    step: int
    purity: float = 0.9
    coverage: float = 0.5
    confidence: tuple[float, float] = (0.0, 1.0)
    weight: float = 1.0
    middle: bool = False


@dataclass(frozen=True)
class Window:
    """A window of ``side`` cells whose first cell is (row, column) of an image."""

    image: int
    row: int
    column: int
    side: int
    level: int


@dataclass
class Entry:
    """An embedded component: its class, its level, and the window it comes from (None: from a bank)."""

    row: Tensor
    label: int
    level: int
    window: Window | None


def share(part: int, whole: int) -> float:
    return float(Fraction(part, whole))


def count_pixels(
    labels: list[list[int]], stride: int, row: int, column: int, side: int, num_classes: int
) -> dict[int, int]:
    counts: dict[int, int] = {}
    for y in range(row * stride, (row + side) * stride):
        for x in range(column * stride, (column + side) * stride):
            inside = y < len(labels) and x < len(labels[0])
            label = labels[y][x] if inside else -1
            if 0 <= label < num_classes:
                counts[label] = counts.get(label, 0) + 1
    return counts


def read_middle(
    labels: list[list[int]], stride: int, row: int, column: int, num_classes: int
) -> dict[int, int]:
    y, x = row * stride + stride // 2, column * stride + stride // 2
    label = labels[y][x] if y < len(labels) and x < len(labels[0]) else -1
    return {label: stride**2} if 0 <= label < num_classes else {}


def judge(counts: dict[int, int], area: int, settings: Settings) -> int | str:
    """Return the class of a window, or the criterion that it fails."""
    labelled = sum(counts.values())
    if labelled == 0 or share(labelled, area) < settings.coverage:
        return "coverage"
    most = max(counts.values())
    if share(most, labelled) < settings.purity:
        return "purity"
    return min(label for label, count in counts.items() if count == most)


def probability(logits: list[list[list[float]]], label: int, row: int, column: int, side: int) -> float:
    total = 0.0
    for y in range(row, row + side):
        for x in range(column, column + side):
            scores = [plane[y][x] for plane in logits]
            highest = max(scores)
            total += math.exp(scores[label] - highest) / sum(math.exp(score - highest) for score in scores)
    return total / side**2


def find_windows(
    labels: Tensor,
    size: tuple[int, int],
    stride: int,
    num_classes: int,
    levels: Sequence[Settings],
    logits: Tensor | None = None,
) -> tuple[dict[Window, int], list[dict[str, int]]]:
    """Return the windows that are kept, in order, with their classes, and per level why others were dropped."""
    kept: dict[Window, int] = {}
    reasons: list[dict[str, int]] = []
    images = labels.tolist()
    scores = None if logits is None else logits.tolist()
    for level, settings in enumerate(levels):
        reason = {"candidates": 0, "kept": 0, "coverage": 0, "purity": 0, "confidence": 0}
        for image in range(len(images)):
            for row in range(0, size[0] - settings.window + 1, settings.step):
                for column in range(0, size[1] - settings.window + 1, settings.step):
                    reason["candidates"] += 1
                    if settings.middle and settings.window == 1:
                        counts = read_middle(images[image], stride, row, column, num_classes)
                    else:
                        counts = count_pixels(
                            images[image], stride, row, column, settings.window, num_classes
                        )
                    label = judge(counts, (settings.window * stride) ** 2, settings)
                    low, high = settings.confidence
                    if isinstance(label, int) and scores is not None and (low, high) != (0.0, 1.0):
                        p = probability(scores[image], label, row, column, settings.window)
                        if not low <= p <= high:
                            label = "confidence"
                    if isinstance(label, str):
                        reason[label] += 1
                    else:
                        reason["kept"] += 1
                        kept[Window(image, row, column, settings.window, level)] = label
        reasons.append(reason)
    return kept, reasons


def find_anchor_cells(
    labels: Tensor, size: tuple[int, int], stride: int, num_classes: int, settings: Settings
) -> dict[Window, int]:
    """Return the cells that may be anchors, with their classes."""
    cells = Settings(1, 1, settings.purity, settings.coverage, middle=settings.middle)
    return find_windows(labels, size, stride, num_classes, [cells])[0]


def mean_feature(features: Tensor, window: Window) -> Tensor:
    cells = [
        features[window.image, :, y, x]
        for y in range(window.row, window.row + window.side)
        for x in range(window.column, window.column + window.side)
    ]
    total = cells[0]
    for cell in cells[1:]:
        total = total + cell
    return total / len(cells)


def embed(head: nn.Module, row: Tensor) -> Tensor:
    """Embed one feature row by the formulas of its layers."""
    for linear, norm in zip(head.hidden, head.norms, strict=True):
        hidden = linear.weight @ row + linear.bias
        mean = hidden.sum() / len(hidden)
        variance = ((hidden - mean) ** 2).sum() / len(hidden)
        normed = (hidden - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias
        row = 0.5 * normed * (1 + torch.erf(normed / math.sqrt(2)))
    out = head.output.weight @ row + head.output.bias
    return out / torch.sqrt((out**2).sum())


def loss_of(
    anchors: Sequence[tuple[Window, Tensor, int]],
    components: Sequence[Entry],
    weights: Sequence[float],
    temperature: float,
    *,
    separate: bool = False,
    focus: float = 0.0,
) -> Tensor:
    """Return the loss of embedded anchors (their cells, rows and classes) against embedded components."""
    levels = range(len(weights))
    groups = [[level] for level in levels] if separate else [list(levels)]
    total, total_weight = None, 0.0
    for group in groups:
        losses = []
        for cell, row, label in anchors:
            own = [
                e.window is not None and e.window.side == 1 and same_cell(e.window, cell) for e in components
            ]
            members = [
                e for e, is_own in zip(components, own, strict=True) if e.level in group and not is_own
            ]
            positives = [e for e in members if e.label == label]
            negatives = [e for e in members if e.label != label]
            if positives:
                losses.append(anchor_loss(row, positives, negatives, weights, temperature, separate, focus))
        if losses:
            weight = weights[group[0]] if separate else 1.0
            part = weight * sum(losses[1:], losses[0]) / len(losses)
            total = part if total is None else total + part
            total_weight += weight
    return torch.zeros(()) if total is None else total / total_weight


def same_cell(one: Window, other: Window) -> bool:
    return (one.image, one.row, one.column) == (other.image, other.row, other.column)


def anchor_loss(
    row: Tensor,
    positives: Sequence[Entry],
    negatives: Sequence[Entry],
    weights: Sequence[float],
    temperature: float,
    separate: bool,
    focus: float,
) -> Tensor:
    scores = {id(entry): row @ entry.row / temperature for entry in [*positives, *negatives]}
    highest = max(float(score.detach()) for score in scores.values())
    mass = row.new_zeros(())
    for negative in negatives:
        mass = mass + torch.exp(scores[id(negative)] - highest)
    total, total_weight = row.new_zeros(()), 0.0
    for positive in positives:
        score = scores[id(positive)]
        pair = highest + torch.log(torch.exp(score - highest) + mass) - score
        weight = 1.0 if separate else weights[positive.level]
        weight *= max(1.0 - temperature * float(score.detach()), 1e-3) ** focus
        total = total + weight * pair
        total_weight += weight
    return total / total_weight
