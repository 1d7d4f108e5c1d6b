"""How far a training is, read from its files."""

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from hicl_d2.command.console import duration, printable

METRICS_FILE = "metrics.json"
STDERR_FILE = "stderr.txt"
TAIL_BYTES = 65536
# Characters of a line of output that are shown or kept.
MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Progress:
    """The newest iteration (from 1), its loss, the seconds left and the newest score."""

    iteration: int
    loss: float
    seconds_left: float | None
    score: float | None = None


def read_progress(path: Path, metric: str = "sem_seg/mIoU") -> Progress | None:
    """Return the newest iteration in a file of metrics (a JSON object per line), None if there is none."""
    try:
        lines = tail(path).split(b"\n")
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    newest: Progress | None = None
    score = None
    for line in reversed(lines):
        # skip a line that is cut off, being written, or without these scalars
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            entry = json.loads(line)
            if not isinstance(entry, dict):
                continue
            if score is None and metric in entry:
                score = float(entry[metric])
            if newest is None:
                eta = entry.get("eta_seconds")
                left = None if eta is None else max(0.0, float(eta) - age)
                newest = Progress(int(entry["iteration"]) + 1, float(entry["total_loss"]), left)
    return newest and Progress(newest.iteration, newest.loss, newest.seconds_left, score)


def _modified(path: Path) -> float:
    """Return when a file was changed last, 0 if it is not there (any more)."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def tail(path: Path, start: int = 0) -> bytes:
    """Return the end of a file, from ``start`` on at the earliest; nothing if it cannot be read."""
    if not path.is_file():  # a pipe would be waited for
        return b""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - TAIL_BYTES))
            return file.read()
    except OSError:
        return b""


def last_line(path: Path, start: int = 0) -> str:
    """Return the last line that says something, "" if there is none."""
    lines = re.split(r"[\r\n]", printable(tail(path, start).decode("utf-8", "replace").replace("\r", "\n")))
    return next((line.strip()[:MOST_CHARACTERS] for line in reversed(lines) if line.strip()), "")


def describe(folder: Path, total: int | None, seconds: float, start: int = 0) -> str:
    """Return how far the training in ``folder`` is, from its newest metrics or its last line of output."""
    metrics, errors = folder / METRICS_FILE, folder / STDERR_FILE
    progress = read_progress(metrics)
    spent = duration(seconds)
    if progress is None or _modified(metrics) < _modified(errors):
        return f"{last_line(errors, start) or 'starting'} ({spent} gone)"
    of_total = "" if total is None else f"/{total}"
    left = "" if progress.seconds_left is None else f"  ETA {duration(progress.seconds_left)}"
    return f"iteration {progress.iteration}{of_total}  loss {progress.loss:.4g}{left} ({spent} gone)"
