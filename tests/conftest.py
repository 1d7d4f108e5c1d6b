"""What one test may not leave behind for the next."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

# Under nohup, say, a lost terminal is ignored, and every process that a test starts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What tests find out about files is no business of the user's cache.
CACHE = os.environ["HICL_CACHE"] = tempfile.mkdtemp(prefix="hicl-tests-")


def pytest_unconfigure() -> None:
    """Remove the cache."""
    shutil.rmtree(CACHE, ignore_errors=True)


LOGGERS = ("hicl_d2", "hicl_d2.lite", "detectron2", "fvcore")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Undo what `setup_logger` does to loggers: handlers, levels, and that they keep their records to themselves."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
