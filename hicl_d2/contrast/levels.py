"""The levels of the hierarchy: one window size each, with its own thresholds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real

__all__ = ["Level", "Values", "make_levels"]

# One value for all windows, or one per window.
Values = float | Sequence[float]


@dataclass(frozen=True)
class Level:
    """Describe one level of the hierarchy: its windows and what they must pass. By default every criterion is off.

    Attributes:
        window: side of its windows, in cells of the feature map.
        step: cells from the start of one window to the start of the next.
        purity: least share of a window's labelled pixels that its class must have; 0 switches the criterion off.
        coverage: least share of a window's pixels that must be labelled; 0 switches the criterion off.
        confidence: least and greatest mean predicted probability of its class; (0, 1) switches the criterion off.
        weight: of the level in the loss, above 0.
    """

    window: int
    step: int
    purity: float = 0.0
    coverage: float = 0.0
    confidence: tuple[float, float] = (0.0, 1.0)
    weight: float = 1.0

    @classmethod
    def cell(cls, purity: float = 0.0, coverage: float = 0.0) -> "Level":
        """Make the level of single cells, whose windows are one cell each."""
        return cls(1, 1, purity, coverage)

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many windows lie wholly on a map of ``size`` (h, w): (rows, columns), 0 where none fits."""
        return (
            max(0, (size[0] - self.window) // self.step + 1),
            max(0, (size[1] - self.window) // self.step + 1),
        )


def make_levels(
    windows: Sequence[int],
    purity: Values,
    coverage: Values,
    confidence_low: Values,
    confidence_high: Values,
    weights: Values,
    *,
    overlap: bool,
) -> tuple[Level, ...]:
    """Make the levels that are on: those with a weight above 0.

    Each setting but ``windows`` has one value for all windows or one per window. With ``overlap`` windows start half a
    window apart.

    Raises ValueError for windows that are not ascending, lists of another length, thresholds out of range, or when
    no level is left.
    """
    windows = _checked_windows(windows)
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
            raise ValueError(f"{name} must lie in 0 to 1, not {shared[name]}")
    if not all(value >= 0.0 for value in columns["level_weights"]):
        raise ValueError(f"level_weights must not be negative, not {weights}")
    levels = tuple(
        Level(window, max(1, window // 2) if overlap else window, p, c, (low, high), weight)
        for window, p, c, low, high, weight in zip(windows, *columns.values(), strict=True)
        if weight > 0.0
    )
    if not levels:
        raise ValueError("level_weights switch every level off; give at least one of them a weight above 0")
    return levels


def _checked_windows(windows: Iterable[int]) -> tuple[int, ...]:
    found = tuple(windows) if isinstance(windows, Iterable) else ()
    are_whole = all(isinstance(window, Integral) and window >= 1 for window in found)
    if not found or not are_whole or any(a >= b for a, b in pairwise(found)):
        raise ValueError(
            f"windows must be whole numbers from 1, ascending, such as (1, 2, 4, 8), not {windows!r}"
        )
    return tuple(map(int, found))


def _per_window(name: str, values: Values, count: int) -> list[float]:
    found = (values,) if isinstance(values, Real) else values
    if not isinstance(found, Iterable) or not all(isinstance(value, Real) for value in found):
        raise ValueError(f"{name} must be a number, or one for each window, not {values!r}")
    values = [float(value) for value in found]
    if len(values) not in (1, count):
        raise ValueError(
            f"{name} needs one value, or as many as there are windows ({count}), not {len(values)}"
        )
    return values * count if len(values) == 1 else values
