"""What a command says on the console: a bar or a moving line on a terminal, a plain line now and then elsewhere."""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

from hicl_d2.command.address import masked
from hicl_d2.command.errors import InputError
from hicl_d2.command.live import Work, can_draw, draw

MOST_SECONDS = 1e12
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_REDRAWS = 0.1
# Sequences that move the cursor, colour or name the window; and single characters of that kind, line ends aside.
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ERASE_LINE = "\r\033[K"
ERASE_SCREEN = "\033[H\033[J"


def printable(text: str) -> str:
    """Return ``text`` without what a terminal would obey instead of show: escape sequences and control characters."""
    return CONTROL.sub("", ESCAPE.sub("", text))


def _encodable(text: str, stream: TextIO) -> str:
    """Return ``text`` with escapes for what the encoding of ``stream`` lacks, as standard error has them."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Console:
    """Progress on standard error, results on standard output.

    Of several processes that do one piece of work, all but the main one are silenced (:meth:`silence`).
    """

    def __init__(self) -> None:
        self._is_silent = False
        self._last = float("-inf")
        self._open = 0  # moving lines that the cursor stands at the end of

    def silence(self, is_silent: bool = True) -> None:
        """Show nothing from here on (False: show again)."""
        self._is_silent = is_silent

    def progress(
        self,
        text: str | Callable[[], str],
        *,
        is_last: bool = False,
        work: Callable[[], Work] | None = None,
    ) -> None:
        """Show how far the work is; most calls show nothing and do not call ``text``, the last one always shows.

        On a terminal the bar of ``work`` stands in the place of ``text``.
        """
        if self._is_silent:
            return
        on_terminal = sys.stderr.isatty()
        period = SECONDS_BETWEEN_REDRAWS if on_terminal else SECONDS_BETWEEN_LINES
        now = time.monotonic()
        if not is_last and now - self._last < period:
            return
        self._last = now
        width = shutil.get_terminal_size().columns - 1
        if work is not None and can_draw(sys.stderr):
            self._redraw(draw(work(), width, sys.stderr))
        elif on_terminal:
            self._redraw([_line(text)[:width]])
        else:
            write_error(f"{_line(text)}\n")
        if is_last:
            self.close()

    def say(self, text: str) -> None:
        """Show a line that stays, in the place of the moving one."""
        if not self._is_silent:
            self._erase()
            write_error(f"{printable(text)}\n")

    def show(self, text: str) -> None:
        """Write a result to standard output. Raises InputError, the first time, if it cannot be written."""
        if not self._is_silent:
            self._write(printable(text))

    def screen(self, text: str, *, is_moving: bool) -> None:
        """Write a result as :meth:`show` does; on a terminal a moving one takes the place of what was there."""
        if not self._is_silent:
            begin = ERASE_SCREEN if is_moving and sys.stdout.isatty() else ""
            self._write(begin + printable(text))

    def _write(self, text: str) -> None:
        self._erase()
        try:
            sys.stdout.write(_encodable(masked(f"{text}\n"), sys.stdout))
            sys.stdout.flush()
        except OSError as error:
            _give_up(sys.stdout)
            reason = str(error.strerror).lower()
            raise InputError(f"standard output cannot be written ({reason})") from None

    def close(self) -> None:
        """End the moving line where it is, so that what follows has a line of its own."""
        if self._open:
            write_error("\n")
            self._open = 0

    def _redraw(self, lines: list[str]) -> None:
        write_error(self._erasing() or ERASE_LINE)
        write_error("\n".join(lines))
        self._open = len(lines)

    def _erase(self) -> None:
        write_error(self._erasing())
        self._open = 0

    def _erasing(self) -> str:
        """Return what takes the moving lines away: one as it stands, more from the first on."""
        return "" if not self._open else ERASE_LINE if self._open == 1 else f"\r\033[{self._open - 1}A\033[J"


console = Console()


def _line(text: str | Callable[[], str]) -> str:
    return printable(text if isinstance(text, str) else text())


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
        console.progress(
            lambda: f"{what} {done}/{total}  ETA {duration(left)}",
            is_last=done == total,
            work=lambda: Work(what, done, total, duration(left)),
        )

    return count


def duration(seconds: float) -> str:
    """Return ``seconds`` as h:mm:ss; "?" for more than a timetable can hold."""
    if not abs(seconds) < MOST_SECONDS:
        return "?"
    return str(timedelta(seconds=round(seconds)))
