"""Logging to the console and to a file in the output directory."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Hashable
from typing import IO, Any

from termcolor import colored

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.utils.file_io import PathManager

__all__ = ["log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

__getattr__ = beyond_lite(__name__, "create_small_table")

ROOT = "hicl_d2.lite"
_DATE = "%m/%d %H:%M:%S"

_counts: Counter[Hashable] = Counter()
_last_logged: dict[Hashable, float] = {}


class _ColorfulFormatter(logging.Formatter):
    """Format for a terminal: the logger's root name abbreviated, warnings and errors marked in red."""

    def __init__(self, root: str, abbreviation: str) -> None:
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_DATE)
        self._root = f"{root}."
        self._abbreviation = f"{abbreviation}." if abbreviation else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        shown = logging.makeLogRecord(vars(record))  # the record itself goes on to other handlers
        shown.name = record.name.replace(self._root, self._abbreviation)
        text = super().formatMessage(shown)
        if record.levelno < logging.WARNING:
            return text
        is_error = record.levelno >= logging.ERROR
        mark = colored("ERROR", "red", attrs=["blink", "underline"]) if is_error else None
        return f"{mark or colored('WARNING', 'red', attrs=['blink'])} {text}"


@functools.cache  # a second call with the same arguments adds no second handler
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = ROOT,
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Make the logger ``name`` write to the console (rank 0 alone) and, with ``output``, to a file.

    ``output`` is a file ending in .txt or .log, or a directory for ``log.txt``; rank 1 appends ``.rank1`` and
    so on. ``abbrev_name`` stands for ``name`` on a coloured console.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE)
    if abbrev_name is None:
        abbrev_name = "lite" if name == ROOT else name
    if configure_stdout and distributed_rank == 0:
        _add_handler(logger, sys.stdout, _ColorfulFormatter(name, abbrev_name) if color else plain)
    if output is not None:
        file = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        suffix = f".rank{distributed_rank}" if distributed_rank > 0 else ""
        _add_handler(logger, _log_stream(file + suffix), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: Any, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # loggers that write to one file share its stream
def _log_stream(file: str) -> IO[Any]:
    PathManager.mkdirs(os.path.dirname(file))
    stream = PathManager.open(file, "a")
    atexit.register(stream.close)
    return stream


def _caller() -> tuple[str, tuple[Hashable, ...]]:
    """Return the module that called into this one, and a key for the calling line."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "__main__")
    key = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return (ROOT if module == "__main__" else module), key


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log ``msg`` the first ``n`` times; times are counted per ``key``: "caller", "message", or both."""
    keys = (key,) if isinstance(key, str) else key
    assert keys, 'key must be "caller", "message" or a tuple of them'
    module, place = _caller()
    identity = (place if "caller" in keys else None, msg if "message" in keys else None)
    _counts[identity] += 1
    if _counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log ``msg`` the first time and every ``n`` times after it, counted per calling line."""
    module, place = _caller()
    _counts[place] += 1
    if (_counts[place] - 1) % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log ``msg`` unless the same line logged less than ``n`` seconds ago."""
    module, place = _caller()
    now = time.monotonic()
    if place not in _last_logged or now - _last_logged[place] >= n:
        _last_logged[place] = now
        logging.getLogger(name or module).log(lvl, msg)
