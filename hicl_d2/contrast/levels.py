"""The levels of the hierarchy: one window size each, with its own thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Level", "Link", "link_levels", "make_levels"]


@dataclass(frozen=True)
class Level:
    """Describe one level.

    Attributes:
        window: side of its windows, in cells of the feature map.
        step: cells from one window to the next.
        purity: least share of a window's labelled pixels that its class must have; 0 switches the criterion off.
        coverage: least share of a window's pixels that must be labelled; 0 switches the criterion off.
        confidence: least and greatest mean predicted probability of its class; (0, 1) switches the criterion off.
        weight: of the level in the loss, above 0.
    """

    window: int
    step: int
    purity: float
    coverage: float
    confidence: tuple[float, float]
    weight: float

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many windows lie whole on a map of ``size`` (h, w), along each axis."""
        return (
            max(0, (size[0] - self.window) // self.step + 1),
            max(0, (size[1] - self.window) // self.step + 1),
        )


class Link(NamedTuple):
    """Tell how a level's windows are composed of the windows of a smaller level.

    Attributes:
        parent: index of the smaller level; -1 for the cells themselves.
        pick: take every ``pick``-th window of the parent, so that those taken tile the map.
        factor: how many of them lie along a window's side.
        stride: how many lie between a window and the next.
    """

    parent: int
    pick: int
    factor: int
    stride: int


def make_levels(
    windows: Sequence[int],
    purity: Sequence[float],
    coverage: Sequence[float],
    confidence_low: Sequence[float],
    confidence_high: Sequence[float],
    weights: Sequence[float],
    *,
    overlap: bool,
) -> tuple[Level, ...]:
    """Make the levels that are on: those with a weight above 0.

    Each list but ``windows`` has one value for all windows or one per window. With ``overlap`` windows start half a
    window apart.

    Raises ValueError for windows that are not ascending, lists of another length, thresholds out of range, or when
    no level is left.
    """
    if not windows or any(w < 1 for w in windows) or any(a >= b for a, b in pairwise(windows)):
        raise ValueError(f"windows must be whole numbers from 1, ascending, not {tuple(windows)}")
    shared = {
        "purity": purity,
        "coverage": coverage,
        "confidence_low": confidence_low,
        "confidence_high": confidence_high,
        "level_weights": weights,
    }
    columns = {name: _per_window(name, values, len(windows)) for name, values in shared.items()}
    for name in ("purity", "coverage", "confidence_low", "confidence_high"):
        if not all(0.0 <= value <= 1.0 for value in columns[name]):
            raise ValueError(f"{name} must lie in 0 to 1, not {tuple(shared[name])}")
    if not all(value >= 0.0 for value in columns["level_weights"]):
        raise ValueError(f"level_weights must not be negative, not {tuple(weights)}")
    levels = tuple(
        Level(window, max(1, window // 2) if overlap else window, p, c, (low, high), weight)
        for window, p, c, low, high, weight in zip(windows, *columns.values(), strict=True)
        if weight > 0.0
    )
    if not levels:
        raise ValueError("level_weights switch every level off; give at least one of them a weight above 0")
    return levels


def _per_window(name: str, values: Sequence[float], count: int) -> list[float]:
    if len(values) not in (1, count):
        raise ValueError(f"{name} needs one value, or one for each of the {count} windows, not {len(values)}")
    return [float(value) for value in (list(values) * count if len(values) == 1 else values)]


def link_levels(levels: Sequence[Level]) -> tuple[Link, ...]:
    """Link each level to the largest smaller one whose windows tile its own, or to the cells."""
    links = []
    for k, level in enumerate(levels):
        link = Link(-1, 1, level.window, level.step)
        for parent in range(k - 1, -1, -1):
            size, step = levels[parent].window, levels[parent].step
            if level.window % size == 0 and level.step % size == 0 and size % step == 0:
                link = Link(parent, size // step, level.window // size, level.step // size)
                break
        links.append(link)
    return tuple(links)
