"""The log of a run: everything in ``log.txt``, warnings of the project on the console.

Until the output directory is known to be good nothing is written: what is logged before is kept in memory.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from hicl_d2.command.address import masked
from hicl_d2.command.console import console
from hicl_d2.command.files import check_regular
from hicl_d2.d2.utils import comm

LOGGERS = ("hicl_d2", "detectron2", "fvcore", "py.warnings")
FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
DATE_FORMAT = "%m/%d %H:%M:%S"


class _ConsoleHandler(logging.Handler):
    """Says records on the console, so that a bar or a moving line gives way to them."""

    def emit(self, record: logging.LogRecord) -> None:
        console.say(self.format(record))


class _Masked(logging.Formatter):
    """Write no user, password or token of a URL into a log."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class RunLog:
    """Where the loggers of one run write; ``open`` turns from memory to the file."""

    def __init__(self) -> None:
        # Nothing is so severe that it would be shown before there is a file.
        self._memory = MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handlers: list[logging.Handler] = [self._memory]
        self._add(self._memory, LOGGERS)
        if comm.is_main_process():
            shown = _ConsoleHandler()
            shown.setLevel(logging.WARNING)
            shown.addFilter(lambda record: not record.exc_info)  # a traceback is for the file
            shown.setFormatter(_Masked("%(levelname)s: %(message)s"))
            self._handlers.append(shown)
            self._add(shown, ("hicl_d2",))

    def open(self, output_dir: str | Path) -> None:
        """Write what was logged so far and all that follows to ``log.txt`` (rank 1: ``log.txt.rank1``)."""
        rank = comm.get_rank()
        path = Path(output_dir) / f"log.txt{f'.rank{rank}' if rank else ''}"
        check_regular(path, "log")
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(_Masked(FORMAT, DATE_FORMAT))
        self._handlers.append(file)
        self._memory.setTarget(file)
        self._memory.flush()
        self._remove(self._memory)
        self._add(file, LOGGERS)

    def close(self) -> None:
        """Detach and close every handler. Raises OSError, with the file, if its last lines cannot be written."""
        failed: OSError | None = None
        for handler in self._handlers:
            self._remove(handler)
            try:
                handler.close()
            except OSError as error:
                failed = OSError(error.errno, error.strerror, getattr(handler, "baseFilename", None))
        if failed is not None:
            raise failed

    def _add(self, handler: logging.Handler, names: tuple[str, ...]) -> None:
        for name in names:
            logging.getLogger(name).addHandler(handler)

    def _remove(self, handler: logging.Handler) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


@contextmanager
def run_log() -> Iterator[RunLog]:
    """Log a run inside the block."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in LOGGERS]
    for logger, _ in before:
        logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    raise_exceptions, logging.raiseExceptions = (
        logging.raiseExceptions,
        False,
    )  # a full disk is reported once, not per line
    log = RunLog()
    try:
        yield log
    except BaseException:
        with suppress(OSError):  # the error that ended the run is the one to tell
            log.close()
        raise
    else:
        log.close()
    finally:
        logging.raiseExceptions = raise_exceptions
        logging.captureWarnings(False)
        for logger, level in before:
            logger.setLevel(level)
