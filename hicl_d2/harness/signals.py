"""How urgently the harness was asked to end: drain, then stop, then kill."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hicl_d2.command.interrupts import Interrupted, installed

GO, DRAIN, STOP, KILL = range(4)


class Signals:
    """The signals that have come so far.

    Outside of :meth:`noted` a signal raises Interrupted. Inside, the first Ctrl-C asks to drain (start nothing more),
    the second to stop (trainings keep a checkpoint), the third to kill. SIGTERM asks to stop at once, and again to
    kill; a lost terminal asks to stop, however often it is told.
    """

    def __init__(self) -> None:
        self.level = GO
        self.signum: int | None = None
        self._is_noted = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP == self.signum:
            return  # the shell and the system both tell it
        self.signum = signum
        if not self._is_noted:
            raise Interrupted(signum)
        if signum == signal.SIGHUP:
            self.level = max(self.level, STOP)
        else:
            floor = DRAIN if signum == signal.SIGINT else STOP
            self.level = min(KILL, max(self.level + 1, floor))

    @contextmanager
    def handled(self) -> Iterator["Signals"]:
        """Answer the signals inside the block; call it in the main thread."""
        with installed(self._handle):
            yield self

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals inside the block, and raise Interrupted at its end if there were any."""
        self._is_noted = True
        try:
            yield
        finally:
            self._is_noted = False
        if self.signum is not None:
            raise Interrupted(self.signum)
