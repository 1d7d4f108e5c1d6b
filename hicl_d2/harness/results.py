"""``result.json``, as a training leaves it: whether it is there, and every number in it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.command.layout import RESULT, RESULT_SCHEMA


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, None if there is none yet.

    A file that is damaged counts as none: the training will write it again. InputError for one of another
    schema.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("status") != "finished":
        return None
    if result.get("schema") != RESULT_SCHEMA:
        raise InputError(
            f"{path} has schema {result.get('schema')!r} and this harness reads {RESULT_SCHEMA}; "
            "choose another --output, or move the cell's folder away"
        )
    return result


def measures(result: dict[str, Any]) -> Iterator[tuple[str, str, float | None, int | None]]:
    """Yield every number of a result as (metric, at, value, iteration); value None for nothing measured."""
    for at, scores in result.get("metrics", {}).items():
        iteration = scores.get("iteration")
        for metric, value in scores.items():
            if metric != "iteration":
                yield metric, at, number(value), iteration
    last = result.get("metrics", {}).get("last", {})
    end = result.get("iterations")
    for name, value in result.get("class_iou", {}).items():
        if f"sem_seg/IoU-{name}" not in last:
            yield f"sem_seg/IoU-{name}", "last", number(value), last.get("iteration")
    for group in ("seconds", "parameters"):
        for name, value in (result.get(group) or {}).items():
            yield f"{group}/{name}", "last", number(value), end
    yield "peak_memory_mb", "last", number(result.get("peak_memory_mb")), end


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else: JSON has no nan, and a table shows neither."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
