"""What a command says on the console: one moving line on a terminal, a plain line now and then elsewhere."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

from hicl_d2.command.address import masked
from hicl_d2.command.errors import InputError

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_REDRAWS = 0.1
ERASE_LINE = "\r\033[K"
ERASE_SCREEN = "\033[H\033[J"


class Console:
    """Progress on standard error, results on standard output.

    Of several processes that do one piece of work, all but the main one are silenced (:meth:`silence`).
    """

    def __init__(self) -> None:
        self._is_silent = False
        self._last = float("-inf")
        self._is_open = False  # whether the cursor stands behind a moving line

    def silence(self, is_silent: bool = True) -> None:
        """Show nothing from here on (False: show again)."""
        self._is_silent = is_silent

    def progress(self, text: str | Callable[[], str], *, is_last: bool = False) -> None:
        """Show how far the work is; most calls show nothing and do not call ``text``, the last one always shows."""
        if self._is_silent:
            return
        on_terminal = sys.stderr.isatty()
        period = SECONDS_BETWEEN_REDRAWS if on_terminal else SECONDS_BETWEEN_LINES
        now = time.monotonic()
        if not is_last and now - self._last < period:
            return
        self._last = now
        line = text if isinstance(text, str) else text()
        if on_terminal:
            width = shutil.get_terminal_size().columns - 1
            write_error(f"{ERASE_LINE}{line[:width]}")
            self._is_open = True
        else:
            write_error(f"{line}\n")
        if is_last:
            self.close()

    def say(self, text: str) -> None:
        """Show a line that stays, in the place of the moving one."""
        if not self._is_silent:
            self._erase()
            write_error(f"{text}\n")

    def show(self, text: str) -> None:
        """Write a result to standard output. Raises InputError, the first time, if it cannot be written."""
        if not self._is_silent:
            self._erase()
            try:
                sys.stdout.write(masked(f"{text}\n"))
                sys.stdout.flush()
            except OSError as error:
                _give_up(sys.stdout)
                reason = str(error.strerror).lower()
                raise InputError(f"standard output cannot be written ({reason})") from None

    def screen(self, text: str, *, is_moving: bool) -> None:
        """Write a result as :meth:`show` does; on a terminal a moving one takes the place of what was there."""
        if is_moving and sys.stdout.isatty():
            text = f"{ERASE_SCREEN}{text}"
        self.show(text)

    def close(self) -> None:
        """End the moving line where it is, so that what follows has a line of its own."""
        if self._is_open:
            write_error("\n")
            self._is_open = False

    def _erase(self) -> None:
        if self._is_open:
            write_error(ERASE_LINE)
            self._is_open = False


console = Console()


def write_error(text: str) -> None:
    """Write to standard error; that the console is gone must not keep the work from ending in order."""
    try:
        sys.stderr.write(masked(text))
        sys.stderr.flush()
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Let nothing more be written to a stream that is broken: Python would try again at its end, and exit for that."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def counter(what: str, total: int) -> Callable[[], None]:
    """Return a function that is called after each of ``total`` pieces of work and shows how far it is."""
    start = time.monotonic()
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - start) / done * (total - done)
        console.progress(lambda: f"{what} {done}/{total}  ETA {duration(left)}", is_last=done == total)

    return count


def duration(seconds: float) -> str:
    """Return ``seconds`` as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
