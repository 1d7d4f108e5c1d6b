"""What is wrong with the user's input, said in one line.

A command-line tool ends with that line on standard error and status 2, without a traceback
(:func:`hicl_d2.command.cli.run`). Everything else that raises is a fault of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

# What torch puts before the traceback of a data loader's worker.
WRAPPED = "Original Traceback"


class InputError(Exception):
    """Raised for anything the user can put right: config, data, weights, paths, permissions.

    The message is one line: what is wrong, where, what was expected, what to do. Line breaks of what the user wrote and
    the message quotes become spaces.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        # A data loader's worker wraps the message in its traceback; `one_line` unwraps it.
        super().__init__(text if WRAPPED in text else " ".join(text.splitlines()))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the known name most like ``name``, or ``""`` if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def nearest_or_known(name: str, names: Iterable[str]) -> str:
    """Return the hint of :func:`nearest`, or the known names where none is close: ``"; known: A, B"``."""
    names = list(names)
    return nearest(name, names) or f"; known: {listing(names, 20)}"


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Return ``names`` sorted and joined by commas, cut after ``limit`` with a count of the rest."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit])
    rest = len(ordered) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what it counts: "1 cell", "2 cells"; ``many`` where an s at the end does not make the plural."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` as one line, also when a data loader's worker has wrapped it in a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and any(WRAPPED in line for line in lines):
        return lines[-1].split("InputError: ", 1)[-1]
    return " ".join(lines)
