"""The figures of an evaluation as one flat mapping."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def flat(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested results on one level: ``{"sem_seg/mIoU": 61.2}``; None, for nothing measured, becomes NaN.

    Raises TypeError, ValueError or RuntimeError for what is no number.
    """
    return dict(_flat(results, prefix))


def _flat(results: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", math.nan if value is None else float(value)


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return ``metrics`` with None for what is not finite: JSON has no NaN."""
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
    }
