"""Ctrl-C and its kin: drain, then stop, then kill."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GO, DRAIN, STOP, KILL = range(4)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Raised when the user or the system asks the harness to stop; ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """How urgently the harness was asked to end.

    Outside of :meth:`noted` a signal raises :class:`Stopped`. Inside, the first Ctrl-C asks to drain (start
    nothing more), the second to stop (trainings keep a checkpoint), the third to kill; SIGTERM and a lost
    terminal ask to stop at once.
    """

    def __init__(self) -> None:
        self.level = GO
        self.signum: int | None = None
        self._is_noted = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if not self._is_noted:
            raise Stopped(signum)
        floor = DRAIN if signum == signal.SIGINT else STOP
        self.level = min(KILL, max(self.level + 1, floor))

    @contextmanager
    def handled(self) -> Iterator["Signals"]:
        """Handle the signals inside the block; call it in the main thread."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals inside the block, and raise :class:`Stopped` at its end if there were any."""
        self._is_noted = True
        try:
            yield
        finally:
            self._is_noted = False
        if self.signum is not None:
            raise Stopped(self.signum)
