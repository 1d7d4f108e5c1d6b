"""Ctrl-C, SIGTERM and a lost terminal: at once where nothing is lost, at the end of the iteration where a checkpoint
can be kept.

Python runs signal handlers between two of its own instructions. Within an iteration (``defer`` to
``release``) a first signal is only noted; anywhere else, and the second time, it raises :class:`Interrupted`. A lost
terminal is told twice, by the shell and by the system, and is one signal.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Raised when the user or the system asks the program to stop; ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _State:
    """What the handler knows; one per process."""

    handles = False
    deferred = False
    patient = False
    follows = False
    received: int | None = None


_state = _State()


def _handle(signum: int, frame: FrameType | None) -> None:
    is_first = _state.received is None
    if is_first:
        _state.received = signum
        # The signal may have gone to the loaders' workers too, and torch raises when it hears that one ended.
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    wait = _state.deferred if is_first else _state.patient or signum == signal.SIGHUP
    if not (_state.follows or wait):
        raise Interrupted(signum)


def _show_own(
    owner: int,
    show: Callable[..., object],
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Show an error that nothing caught, unless it is that of a loader's worker which lost its connection.

    The threads by which workers hand over tensors show theirs when the process they belong to has stopped
    listening; what stopped it is said by that process.
    """
    if os.getpid() == owner or not issubclass(kind, EOFError | ConnectionError):
        show(kind, error, traceback)


def quieten_loaders() -> None:
    """From here on do not show what fails in the destructor of a loader that could not start its workers: that was said."""
    show = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "DataLoaderIter" in repr(found.object) else show(found)


@contextmanager
def installed(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handle`` answer :data:`SIGNALS` inside the block; call it in the main thread.

    A lost terminal that this process was told to ignore (``nohup``) stays ignored.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    answered = [signum for signum in SIGNALS if not (signum == signal.SIGHUP and ignored)]
    before = {signum: signal.signal(signum, handle) for signum in answered}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def handled(*, patient: bool = False, follows: bool = False) -> Iterator[None]:
    """Handle the signals as described inside the block; call it in the main thread.

    ``patient`` is for processes that another one started: they may get a signal twice, from the terminal and
    from it, and ignore the second. ``follows`` is for those of them that only note a signal, because the main
    one still needs them to finish its iteration; they stop when it does.
    """
    of_children = signal.getsignal(signal.SIGCHLD)
    _state.deferred, _state.patient, _state.follows, _state.received = False, patient, follows, None
    _state.handles = True
    show = sys.excepthook
    sys.excepthook = partial(_show_own, os.getpid(), show)
    try:
        with installed(_handle):
            yield
    finally:
        sys.excepthook = show
        signal.signal(signal.SIGCHLD, of_children if of_children is not None else signal.SIG_DFL)
        _state.handles = _state.deferred = _state.patient = _state.follows = False


def defer() -> None:
    """From here on, note a signal instead of raising."""
    _state.deferred = True


def release() -> int | None:
    """End :func:`defer` and return the signal that was noted meanwhile, if this process is to act on it.

    A signal that ended an earlier command of this process, in a notebook say, is none of a later training.
    """
    _state.deferred = False
    return _state.received if _state.handles and not _state.follows else None


def received() -> int | None:
    """Return the first signal that came."""
    return _state.received
