"""One moving line on a terminal; elsewhere a plain line now and then. Results go to standard output."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta

SECONDS_BETWEEN_REDRAWS = 0.2
SECONDS_BETWEEN_LINES = 15.0


class Console:
    """Progress on standard error."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._is_open = False  # whether the cursor stands behind a moving line
        self._shown = float("-inf")

    def progress(self, text: Callable[[], str]) -> None:
        """Show how far the work is; most calls show nothing, and then ``text`` is not asked."""
        now = time.monotonic()
        if now - self._shown < (SECONDS_BETWEEN_REDRAWS if self._on_terminal else SECONDS_BETWEEN_LINES):
            return
        self._shown = now
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            _write(f"\r\033[K{text()[:width]}")
            self._is_open = True
        else:
            _write(f"{text()}\n")

    def say(self, text: str) -> None:
        """Show a line that stays, in the place of the moving one."""
        _write(f"\r\033[K{text}\n" if self._is_open else f"{text}\n")
        self._is_open = False
        self._shown = time.monotonic()

    def result(self, text: str) -> None:
        """Write a result to standard output."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def screen(self, text: str, is_moving: bool) -> None:
        """Write ``text`` to standard output; on a terminal a moving one takes the place of what was there."""
        if is_moving and sys.stdout.isatty():
            sys.stdout.write("\033[H\033[J")
        self.result(text)


def _write(text: str) -> None:
    """Write to standard error; that nobody is there must not keep the work from ending in order."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return ``seconds`` as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
