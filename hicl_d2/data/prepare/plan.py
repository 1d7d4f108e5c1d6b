"""A plan of conversions, and its execution: parallel, resumable, each file whole or not at all."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, counted
from hicl_d2.data.parallel import for_each
from hicl_d2.data.writing import make_folder, write_labels
from hicl_d2.reading import read_labels

IGNORE = 255
SECOND = 10**9


@dataclass(frozen=True)
class Item:
    """A file to convert, where the result goes, and what else the conversion wants to know of it.

    With a ``stamp`` (of :func:`stamp_of`) the target gets the time of its source: a source that takes another one's place is
    noticed also if it is the older file.
    """

    source: Path
    target: Path
    image: Path | None = None
    content: Any = None
    stamp: int | None = None

    def is_done(self) -> bool:
        """Return whether the target is there and of this source: no older, or of the very time of its ``stamp``."""
        try:
            time = self.target.stat().st_mtime_ns
            if self.stamp is None:
                return time >= self.source.stat().st_mtime_ns
        except OSError:
            return False
        whole_seconds = self.stamp - self.stamp % SECOND  # all that some file systems keep
        return time in (self.stamp, whole_seconds)


def stamp_of(source: Path) -> int | None:
    """Return the time of ``source`` in nanoseconds, None if it cannot be asked; take it before the file is read."""
    try:
        return source.stat().st_mtime_ns
    except OSError:
        return None


@dataclass(frozen=True)
class Plan:
    """What is to be done for a data set.

    Attributes:
        items: every conversion.
        convert: makes the label map (H, W), uint8 of classes and 255, of an item; raises InputError with the path.
        classes: names of the classes.
        expected: how many items the whole data set has, by split.
        found: how many there are.
        notes: what was found out about the download, a line each.
    """

    items: Sequence[Item]
    convert: Callable[[Item], np.ndarray]
    classes: Sequence[str]
    expected: dict[str, int]
    found: dict[str, int]
    notes: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """What was done: files converted now, files kept from earlier, and pixels by label value (256,)."""

    converted: int
    kept: int
    pixels: np.ndarray


def check_complete(plan: Plan) -> None:
    """Raise InputError if the download lacks files (half a download trains to a lower score, silently)."""
    short = [
        f"{split} has {plan.found.get(split, 0)} of {count}"
        for split, count in plan.expected.items()
        if plan.found.get(split, 0) < count
    ]
    if short:
        raise InputError(
            f"the download is not complete: {', '.join(short)} label files; fetch the rest, or go on with "
            "what is there: --partial"
        )


def carry_out(
    plan: Plan, root: Path, *, workers: int = 0, advance: Callable[[], None] | None = None
) -> Summary:
    """Convert what is not converted yet, and count the pixels of every label.

    What an earlier run has finished is kept; a target that cannot be read is made again. Files that cannot be
    converted are left out, the others are done all the same, and then InputError says how many failed, and
    how the first did.
    """
    for folder in sorted({item.target.parent for item in plan.items}):
        make_folder(folder, root)
    summary = Summary(0, 0, np.zeros(256, dtype=np.int64))
    errors: list[tuple[int, InputError]] = []
    for outcome in for_each(partial(_do, plan.convert), plan.items, workers, advance):
        if outcome.error is not None:
            errors.append((outcome.number, outcome.error))
            continue
        is_new, pixels = outcome.result
        summary.converted += is_new
        summary.kept += not is_new
        summary.pixels += pixels
    if errors:
        first = min(errors, key=lambda pair: pair[0])[1]
        raise InputError(
            f"{len(errors)} of {counted(len(plan.items), 'file')} cannot be converted; the first: {first} (all others are "
            "done; run again when it is put right)"
        )
    return summary


def _do(convert: Callable[[Item], np.ndarray], item: Item) -> tuple[bool, np.ndarray]:
    labels = _finished(item.target) if item.is_done() else None
    is_new = labels is None
    if labels is None:
        labels = convert(item)
        write_labels(item.target, labels)
        if item.stamp is not None:
            os.utime(item.target, ns=(item.stamp, item.stamp))
    return is_new, np.bincount(labels.ravel(), minlength=256)


def _finished(target: Path) -> np.ndarray | None:
    try:
        labels = read_labels(target)
    except InputError:
        return None
    return labels if labels.dtype == np.uint8 else None


def lookup(labels: np.ndarray, table: np.ndarray, source: Path, meaning: str) -> np.ndarray:
    """Return ``table`` (uint8) at every label; a negative entry of the table is a label that must not occur.

    Raises InputError naming ``source``, the first such label and how many pixels have it.
    """
    if labels.size == 0:
        raise InputError(f"{source}: the label map is empty; fetch it again")
    top = int(labels.max())
    counts = np.bincount(labels.ravel(), minlength=len(table)) if top < 1 << 16 else None
    wrong = [top] if counts is None else [v for v in counts.nonzero()[0] if v >= len(table) or table[v] < 0]
    if wrong:
        pixels = int((labels == wrong[0]).sum())
        raise InputError(
            f"{source}: label {wrong[0]} ({counted(pixels, 'pixel')}) does not occur in {meaning}"
        )
    return table.astype(np.uint8)[labels]


def names_in(folder: Path, ending: str, expected: str) -> list[Path]:
    """Return the files of ``folder`` that end in ``ending``, sorted, or raise InputError with what was expected."""
    try:
        found = sorted(p for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))
    except OSError as error:
        reason = (error.strerror or "cannot be listed").lower()
        raise InputError(f"{folder}: {reason}; expected {expected}") from None
    if not found:
        raise InputError(f"{folder} holds no *{ending} file; expected {expected}")
    return found


def describe(plan: Plan, summary: Summary) -> Iterable[str]:
    """Yield the lines of the report: count and class histogram, the rarest class last."""
    total = int(summary.pixels.sum())
    yield f"{counted(summary.converted + summary.kept, 'label map')}: {summary.converted} made, {summary.kept} kept"
    width = max(len(name) for name in plan.classes)
    order = np.argsort(-summary.pixels[: len(plan.classes)], kind="stable")
    for index in order:
        pixels = int(summary.pixels[index])
        yield f"  {index:3} {plan.classes[index]:{width}} {100 * pixels / total:8.4f} %  {pixels:15,}"
    yield f"  {IGNORE:3} {'ignored':{width}} {100 * int(summary.pixels[IGNORE]) / total:8.4f} %"
    absent = [plan.classes[index] for index in order if not summary.pixels[index]]
    if absent:
        yield f"without a pixel: {', '.join(absent)}"
