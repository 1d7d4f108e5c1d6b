"""The range of every number of a config, and that its texts are text, checked in one walk before anything reads them.

A number outside of it would end in an error inside a library, in a loop that never ends, or in a run of NaN. What a range
lets pass is not yet sound: each model, the data and the branch check how numbers fit together.
"""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from hicl_d2.command.errors import InputError

# What holds for every number: whole ones fit 32 bits, others leave room to be multiplied in float32.
MOST_WHOLE = 2**31 - 1
MOST_REAL = 1e15
# Channels and widths; the length of an image's side in pixels; layers, blocks and convolutions in a row.
WIDEST, LONGEST, DEEPEST = 2**20, 2**20, 1000


class Range(NamedTuple):
    """The least and the greatest value of the keys that fit ``pattern`` (as file names do), both included."""

    pattern: str
    least: float = -math.inf
    most: float = math.inf


# The first that fits a key holds.
RANGES = (
    Range("SOLVER.MAX_ITER", 1),
    Range("SOLVER.IMS_PER_BATCH", 1, 2**16),
    Range("SOLVER.ACCUMULATE", 1, 2**16),
    Range("SOLVER.CHECKPOINT_PERIOD", 1),
    Range("SOLVER.CHECKPOINT_KEEP", 0),
    Range("SOLVER.NONFINITE_LIMIT", 0),
    Range("SOLVER.REFERENCE_WORLD_SIZE", 0, 2**16),
    Range("SOLVER.WARMUP_ITERS", 0),
    Range("SOLVER.BASE_LR*", 0),
    Range("SOLVER.*LR_FACTOR", 0),
    Range("SOLVER.*MULTIPLIER", 0),
    Range("SOLVER.MOMENTUM", 0, 1),
    Range("SOLVER.WEIGHT_DECAY*", 0),
    Range("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0),
    Range("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 1),
    Range("DATALOADER.NUM_WORKERS", 0, 1024),
    Range("INPUT.*SIZE*", most=LONGEST),
    Range("TEST.*SIZE*", most=LONGEST),
    Range("TEST.WINDOW*", most=LONGEST),
    Range("MODEL.HICL.HIDDEN_DIM", 1, WIDEST),
    Range("MODEL.HICL.LOG_PERIOD", 1),
    Range("MODEL.HICL.WINDOWS", most=LONGEST),
    Range("MODEL.PIXEL_STD", 1e-6),
    Range("MODEL.*DROPOUT", 0, 1),
    Range("MODEL.*DROP*_RATE", 0, 1),
    Range("MODEL.*OVERSAMPLE_RATIO", 1),
    Range("MODEL.*IMPORTANCE_SAMPLE_RATIO", 0, 1),
    Range("MODEL.*NUM_CLASSES", 1, 65535),
    Range("MODEL.*DIM", 1, WIDEST),
    Range("MODEL.*DIMS", most=WIDEST),
    Range("MODEL.*CHANNELS", 1, WIDEST),
    Range("MODEL.*FEEDFORWARD", 1, WIDEST),
    Range("MODEL.*QUERIES", 1, WIDEST),
    Range("MODEL.*WIDTH_PER_GROUP", most=WIDEST),
    Range("MODEL.*NUM_GROUPS", most=WIDEST),
    Range("MODEL.*HEADS", 1, WIDEST),
    Range("MODEL.*STRIDE", most=LONGEST),
    Range("MODEL.*SIZE", most=LONGEST),
    Range("MODEL.*SIZE_DIVISIBILITY", most=LONGEST),
    Range("MODEL.*LAYERS", 0, DEEPEST),
    Range("MODEL.*DEPTH*", most=DEEPEST),
    Range("MODEL.*NUM_CONV*", most=DEEPEST),
    Range("MODEL.*NUM_FC", most=DEEPEST),
)
# Whose reader knows the kind of every key and says more.
OWN_CHECKS = "DATASETS.CUSTOM."
# Orders of a norm, of which the infinite one is the largest element.
MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)


def check_ranges(cfg: Mapping[str, Any]) -> None:
    """Raise InputError, with the key, for the first value of ``cfg`` (nested mappings) that is outside of its range.

    Text that is no UTF-8, or that holds the character 0, which ends a path, is refused too.
    """
    for key, number in _scalars(cfg, ""):
        for text in (key, number):
            if isinstance(text, str) and ("\0" in text or not _is_utf8(text)):
                raise InputError(f"{ascii(key)[1:-1]} is {ascii(number)[:80]}; it must be text (UTF-8)")
        if isinstance(number, str) or key.startswith(OWN_CHECKS):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            if key in MAY_BE_INFINITE and number > 0:
                continue
            raise InputError(f"{key} is {number}; it must be a finite number")
        known = _range_of(key)
        bound = MOST_WHOLE if isinstance(number, int) else MOST_REAL
        least, most = max(known.least, -bound), min(known.most, bound)
        if number < least:
            raise InputError(f"{key} is {_shown(number)}; it must be {_shown(least)} or more")
        if number > most:
            raise InputError(f"{key} is {_shown(number)}; it must be {_shown(most)} or less")


@cache
def _range_of(key: str) -> Range:
    return next((each for each in RANGES if fnmatchcase(key, each.pattern)), Range(key))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalars(value: Any, key: str) -> Iterator[tuple[str, int | float | str]]:
    """Yield the numbers and texts below ``value``, those of lists under the list's own key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _scalars(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _scalars(inner, key)
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        yield key, value


def _shown(number: float) -> str:
    """Return a number for a message; Python does not print whole ones of thousands of digits."""
    if isinstance(number, int) and number.bit_length() > 200:
        return f"a number of about {int(number.bit_length() * math.log10(2))} digits"
    return str(number) if isinstance(number, int) else f"{number:g}"
