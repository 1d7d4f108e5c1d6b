"""One training as a subprocess: started, watched, and stopped with all its children."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.cells import RESULT_FILE, Cell, read_result
from harness.console import duration

METRICS_FILE = "metrics.json"
TAIL_BYTES = 65536
POLL_SECONDS = 0.2
# A training that is asked to stop finishes its iteration and saves a checkpoint.
STOP_SECONDS = 60.0


class Stopped(KeyboardInterrupt):
    """Raised when the user or the system asks the harness to stop; ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Stopped` in the main thread on Ctrl-C, SIGTERM and a lost terminal inside the context."""

    def stop(signum: int, frame: object) -> None:
        raise Stopped(signum)

    before = {
        number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Progress:
    """Where a training is, as far as its files say."""

    iteration: int
    loss: float
    seconds_left: float | None


class Training:
    """A running cell. Its output goes to ``stdout.txt`` and ``stderr.txt`` in the cell's folder."""

    def __init__(self, cell: Cell, script: Path, output: Path) -> None:
        self.cell = cell
        self.folder = cell.folder(output)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Only a damaged one can be here; the training would take it for its own and do nothing.
        (self.folder / RESULT_FILE).unlink(missing_ok=True)
        self.start = time.monotonic()
        self._errors = self.folder / "stderr.txt"
        self._errors_before = self._errors.stat().st_size if self._errors.exists() else 0
        command = [sys.executable, str(script), "--config-file", str(cell.config), "--resume"]
        command += [*cell.arguments(), "OUTPUT_DIR", str(self.folder.resolve())]
        with (self.folder / "stdout.txt").open("ab") as out, self._errors.open("ab") as errors:
            # A session of its own: Ctrl-C reaches the harness alone, which then stops the training in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
            )

    def wait(self, seconds: float = POLL_SECONDS) -> bool:
        """Wait for the end of the training, ``seconds`` at most, and return whether it has come."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ask the training to stop and wait for its checkpoint; a second signal cuts this short."""
        with contextlib.suppress(Stopped):
            self._process.send_signal(signal.SIGINT)
            self.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the training and whatever it has started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def failure(self) -> str | None:
        """Return why the training failed, None if it left a result."""
        status = self._process.returncode
        if status == 0 and read_result(self.folder) is not None:
            return None
        if status == 0:
            return f"it ended without a {RESULT_FILE}"
        how = f"exit {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
        return f"{how}: {self.last_line() or 'no message'}"

    def last_line(self) -> str:
        """Return the last line that the training wrote to standard error, "" if there is none."""
        lines = _tail(self._errors, self._errors_before).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def describe(self) -> str:
        """Return how far the training is: what its files said last, be it a line or a metric."""
        metrics = self.folder / METRICS_FILE
        progress = read_progress(metrics)
        spent = duration(time.monotonic() - self.start)
        if progress is None or metrics.stat().st_mtime < self._errors.stat().st_mtime:
            return f"{self.last_line() or 'starting'} ({spent} gone)"
        total = self.cell.iterations
        of_total = "" if total is None else f"/{total}"
        left = "" if progress.seconds_left is None else f"  ETA {duration(progress.seconds_left)}"
        return f"iteration {progress.iteration}{of_total}  loss {progress.loss:.4g}{left} ({spent} gone)"


def read_progress(path: Path) -> Progress | None:
    """Return the newest iteration in a file of metrics (a JSON object per line), None if there is none."""
    try:
        lines = _tail(path).split(b"\n")
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(
            ValueError, KeyError, TypeError
        ):  # cut off, being written, or of something else
            entry = json.loads(line)
            eta = entry.get("eta_seconds")
            left = None if eta is None else max(0.0, float(eta) - age)
            return Progress(int(entry["iteration"]) + 1, float(entry["total_loss"]), left)
    return None


def _tail(path: Path, start: int = 0) -> bytes:
    """Return the end of a file, from ``start`` on at the earliest; nothing if it is not there."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - TAIL_BYTES))
        return file.read()
