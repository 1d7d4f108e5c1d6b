"""What is wrong with the user's input, in one line."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Raised for anything the user can put right; the command ends with its message and status 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the known name most like ``name``, or all if none is close."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
