"""``result.json``, as a training leaves it: whether it is there, and every number in it."""

import json
import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from hicl_d2.command.digest import KEY, digest
from hicl_d2.command.errors import InputError, nearest_or_known
from hicl_d2.command.files import check_regular
from hicl_d2.command.layout import RESULT, RESULT_SCHEMA

# Of a metric that is the IoU of one class.
CLASS_PREFIX = "sem_seg/IoU-"
# Parts of a result that hold others, by name.
SECTIONS = ("metrics", "class_iou", "seconds", "parameters", "versions", "git")
# Whole numbers of a result are below this.
MOST = 10**300
# A state file of a cell has a few kilobytes; what is larger was not written by us.
MOST_BYTES = 64 * 2**20


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file that others may have put there.

    Raises FileNotFoundError if there is none, ValueError if it is not JSON, and InputError for what cannot be read as a
    file: a pipe, which would be waited for, a folder, a file of gigabytes.
    """
    check_regular(path, most=MOST_BYTES)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, None if there is none yet.

    A file that is damaged counts as none: the training will write it again. InputError for one that was edited, by the
    digest that the project's trainings leave in it, and for one of another schema.
    """
    path = folder / RESULT
    try:
        result = read_json_file(path)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("status") != "finished":
        return None
    if result.get("schema") != RESULT_SCHEMA:
        raise InputError(
            f"{path} has schema {result.get('schema')!r} and this harness reads {RESULT_SCHEMA}; "
            "choose another --output, or move the cell's folder away"
        )
    if KEY in result and result[KEY] != digest(result):
        raise InputError(f"{path} was edited (its digest does not fit); move the cell's folder away")
    return result if _is_whole(result) else None


def result_or_none(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, None if there is none that can be read."""
    try:
        return read_result(folder)
    except (InputError, OSError):
        return None


def _is_whole(result: dict[str, Any]) -> bool:
    """Return whether what should hold figures by name does; what the figures are is looked at where they are used."""
    sections = [result[name] for name in SECTIONS if result.get(name) is not None]
    scores = result.get("metrics") or {}
    return all(isinstance(section, dict) for section in sections) and all(
        isinstance(at, dict) for at in scores.values()
    )


def measures(result: dict[str, Any]) -> Iterator[tuple[str, str, float | None, int | None]]:
    """Yield every number of a result as (metric, at, value, iteration); value None for nothing measured."""
    metrics = result.get("metrics") or {}
    for at, scores in metrics.items():
        iteration = _whole(scores.get("iteration"))
        for metric, value in scores.items():
            if metric != "iteration":
                yield metric, at, number(value), iteration
    last = metrics.get("last", {})
    end = _whole(result.get("iterations"))
    for name, value in (result.get("class_iou") or {}).items():
        if f"{CLASS_PREFIX}{name}" not in last:
            yield f"{CLASS_PREFIX}{name}", "last", number(value), _whole(last.get("iteration"))
    for group in ("seconds", "parameters"):
        for name, value in (result.get(group) or {}).items():
            yield f"{group}/{name}", "last", number(value), end
    yield "peak_memory_mb", "last", number(result.get("peak_memory_mb")), end


def measured(results: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return what at least one of ``results`` names, as (metric, at)."""
    return {(metric, at) for result in results for metric, at, _, _ in measures(result)}


def never_measured(metric: str, at: str, known: Collection[tuple[str, str]]) -> str | None:
    """Return in one line that no finished cell names ``metric``, and the nearest name that one does.

    ``known`` is from :func:`measured`; None if the metric is in it, or if there is no finished cell yet.
    """
    if not known or (metric, at) in known:
        return None
    times = {when for _, when in known}
    if at not in times:
        return f"no finished cell has figures at {at}{nearest_or_known(at, times)}"
    names = {name for name, when in known if when == at}
    return f"no finished cell has {metric} at {at}{nearest_or_known(metric, names)}"


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else: JSON has no nan, and a table shows neither."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_small = is_number and (isinstance(value, float) or abs(value) < MOST)
    return float(value) if is_small and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    """Return a whole number that a table can hold, None for anything else."""
    return value if type(value) is int and abs(value) < 2**62 else None
