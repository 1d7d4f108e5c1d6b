"""What a run says on the console: one moving line on a terminal, a plain line now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from hicl_d2.d2.utils import comm

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_REDRAWS = 0.1


class Console:
    """Progress on standard error, from the main process alone; results go to standard output."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._is_open = False  # whether the cursor stands behind a moving line

    def progress(self, text: str, *, is_last: bool = False) -> None:
        """Show how far the work is; most calls show nothing, the last one always does."""
        if not comm.is_main_process():
            return
        on_terminal = sys.stderr.isatty()
        period = SECONDS_BETWEEN_REDRAWS if on_terminal else SECONDS_BETWEEN_LINES
        now = time.monotonic()
        if not is_last and now - self._last < period:
            return
        self._last = now
        if on_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\033[K{text[:width]}")
            self._is_open = True
        else:
            sys.stderr.write(f"{text}\n")
        if is_last:
            self.close()
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if comm.is_main_process():
            self.close()
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def show(self, text: str) -> None:
        """Write a result to standard output."""
        if comm.is_main_process():
            self.close()
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def close(self) -> None:
        """End the moving line, so that what follows has a line of its own."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False


console = Console()


def counter(what: str, total: int) -> Callable[[], None]:
    """Return a function that is called after each of ``total`` pieces of work and shows how far it is."""
    start = time.monotonic()
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - start) / done * (total - done)
        console.progress(f"{what} {done}/{total}  ETA {duration(left)}", is_last=done == total)

    return count


def duration(seconds: float) -> str:
    """Return ``seconds`` as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
