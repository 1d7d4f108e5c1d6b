"""The same piece of work on every file, in several processes, going on past the files that fail."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

from hicl_d2.command.errors import InputError, one_line

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # prctl(2)

# Pieces of work that wait at each process: enough to keep it busy, few enough to stop soon.
WAITING = 4


class Outcome(NamedTuple):
    """What became of one piece of work: its number, and its result or the error that the user can put right."""

    number: int
    result: Any
    error: InputError | None


def end_with_parent(number: int = 0) -> None:
    """Let this worker (``number`` of a loader) be killed when the process that started it ends, also when that was killed.

    Does nothing where the system has no such call: there a worker looks after its parent every few seconds. A worker that
    cannot hand over a result (no more open files, no room in /dev/shm) ends at once: else the process that started it would
    wait for that result, and not hear of it.
    """
    show = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        _end(error) if _is_of_system(error) else show(kind, error, trace)
    )
    threading.excepthook = lambda failed: _end(failed.exc_value)
    Queue._on_queue_feeder_error = staticmethod(lambda error, result: _end(error))  # type: ignore[attr-defined]
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_of_system(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, ConnectionError)


def _end(error: BaseException | None) -> None:
    logger.info("a worker ends because it cannot hand over its work", exc_info=error)
    os._exit(1)


def for_each(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, advance: Callable[[], None] | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of ``work`` on every item, in no particular order, from ``workers`` processes (0: here).

    ``advance`` is called after each. An InputError is an outcome; any other exception ends everything.
    """
    for outcome in _here(work, items) if workers <= 0 else _in_processes(work, items, workers):
        if advance is not None:
            advance()
        yield outcome


def _here(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Outcome]:
    for index, item in enumerate(items):
        yield _try(work, index, item)


def _try(work: Callable[[Any], Any], index: int, item: Any) -> Outcome:
    try:
        return Outcome(index, work(item), None)
    except InputError as error:
        return Outcome(index, None, error)


def _in_processes(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Outcome]:
    numbered = iter(enumerate(items))
    processes = min(workers, max(len(items), 1))
    pool = ProcessPoolExecutor(processes, mp_context=get_context("fork"), initializer=end_with_parent)
    try:
        running: set[Future[Outcome]] = set()
        while True:
            for index, item in islice(numbered, workers * WAITING - len(running)):
                running.add(pool.submit(_try, work, index, item))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise InputError(f"a worker was killed ({one_line(error)}); give fewer --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
