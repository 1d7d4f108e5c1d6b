"""One training as a subprocess: started, watched, and stopped with all its children."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from hicl_d2.command.errors import InputError
from hicl_d2.command.layout import RESULT
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.data import fingerprint
from hicl_d2.harness.failures import NO_RESULT, TIME_OUT, Failure, classify
from hicl_d2.harness.progress import STDERR_FILE, describe, last_line, tail
from hicl_d2.harness.results import read_result
from hicl_d2.harness.slots import Slot

# Every process of a cell carries its folder in this variable; that is how strays are found.
CELL_VARIABLE = "RUN_MATRIX_CELL"
JOB_VARIABLE = "SLURM_JOB_ID"
# A training that is asked to stop finishes its iteration and saves a checkpoint.
STOP_SECONDS = 60.0
LOCK_SECONDS = 5.0


def command(cell: Cell, script: Path, output: Path) -> list[str]:
    """Return the command that trains ``cell`` or resumes its training."""
    words = [sys.executable, str(script), "--config-file", str(cell.config), "--resume"]
    return [*words, *cell.arguments(), "OUTPUT_DIR", str(cell.folder(output).resolve())]


class Training:
    """A running cell. Its output goes to ``stdout.txt`` and ``stderr.txt`` in the cell's folder."""

    def __init__(
        self, cell: Cell, script: Path, output: Path, slot: Slot, launcher: Sequence[str] = ()
    ) -> None:
        """Start it. ``launcher`` is put before the command."""
        self.cell = cell
        self.slot = slot
        self.folder = cell.folder(output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start = time.monotonic()
        self._errors = self.folder / STDERR_FILE
        self._errors_before = self._errors.stat().st_size if self._errors.exists() else 0
        self._end = 0.0
        self._is_stopped = False
        self._is_late = False
        self._last_beat = 0.0
        held = _lock(self.folder)
        words = [*launcher, *command(cell, script, output), *slot.arguments()]
        variables = {**os.environ, **slot.variables(), CELL_VARIABLE: str(self.folder.resolve())}
        # A result that is here is damaged (a whole one is not run again); the training would take it for its own.
        (self.folder / RESULT).unlink(missing_ok=True)
        with (
            held,
            files.open_log(self.folder / "stdout.txt") as out,
            files.open_log(self._errors) as errors,
        ):
            # A session of its own, so that Ctrl-C reaches the harness alone, which stops the training in order.
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=variables,
                pass_fds=(held.fileno(),),
                start_new_session=True,
            )
        try:
            self._attempt = files.start_attempt(self.folder, slot=str(slot))
            self.beat()
        except BaseException:
            self.kill()
            raise

    @property
    def seconds(self) -> float:
        """How long it has been running, or ran."""
        return (self._end or time.monotonic()) - self.start

    def has_ended(self) -> bool:
        """Return whether the training is over; one that takes longer than its time-out is ended."""
        if self.process.poll() is not None:
            return True
        self.beat()
        limit = self.cell.resources.timeout_hours
        if limit is not None and self.seconds > limit * 3600 and not self._is_stopped:
            self._is_late = True
            self.kill()
            return True
        return False

    def beat(self) -> None:
        """Renew the heartbeat every few seconds."""
        if time.monotonic() - self._last_beat > files.HEARTBEAT_SECONDS:
            files.beat(self.folder)
            self._last_beat = time.monotonic()

    def ask_to_stop(self) -> None:
        """Ask the training to save a checkpoint and end."""
        self._is_stopped = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the training and whatever it has started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._end = self._end or time.monotonic()

    def finish(self) -> Failure | None:
        """Kill what is left of the training, record how it ended, and return why it failed, if it did."""
        self.kill()
        end_processes([pid for pid, _ in processes_of(self.folder)])
        seconds = self.seconds
        data = self._data_at_end()
        failure = self._failure(data)
        files.end_attempt(self.folder, self._attempt, seconds, self.process.returncode, failure, data)
        return failure

    def _data_at_end(self) -> str | None:
        """Return the fingerprint of the data of a cell that has a planned one; None if they are not there any more."""
        if not self.cell.data:
            return None
        try:
            return fingerprint(self.cell.data_names)
        except InputError:
            return None

    def _failure(self, data: str | None) -> Failure | None:
        try:
            if read_result(self.folder) is not None:
                files.check_training(self.folder, data)
                return None
        except InputError as error:
            return Failure(NO_RESULT, str(error))
        if self._is_late:
            return Failure(TIME_OUT, f"it took longer than {self.cell.resources.timeout_hours:g} h")
        if self._is_stopped:
            return None
        end = tail(self._errors, self._errors_before).decode("utf-8", "replace")
        return classify(self.process.returncode, last_line(self._errors, self._errors_before), end)

    def describe(self) -> str:
        """Return how far the training is."""
        return describe(self.folder, self.cell.iterations, self.seconds, self._errors_before)


def _lock(folder: Path) -> IO[bytes]:
    """Return the cell's lock; what a killed process held is free a moment later."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        held = files.lock(folder)
        if held is not None:
            return held
        if time.monotonic() > end:
            raise InputError(
                f"a training is still running in {folder}, maybe on another machine; end it first"
            )
        time.sleep(0.05)


# ----------------------------------------------------------------------------------------------------------
# Strays: trainings whose harness was killed


def processes_of(folder: Path) -> list[tuple[int, Path]]:
    """Return every process that was started for a cell in ``folder`` or below: its id and its cell's folder.

    Looks at the environment of all processes of this user; where there is no /proc it finds none. Processes of
    another job of a cluster are that job's.
    """
    top = str(folder.resolve()).encode()
    own_job = os.environ.get(JOB_VARIABLE, "").encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not name.isdigit():
            continue
        try:
            content = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        items = dict(item.partition(b"=")[::2] for item in content.split(b"\0"))
        place = items.get(CELL_VARIABLE.encode(), b"")
        is_ours = items.get(JOB_VARIABLE.encode(), b"") == own_job
        if is_ours and (place == top or place.startswith(top + b"/")):
            found.append((int(name), Path(os.fsdecode(place))))
    return [(pid, place) for pid, place in found if pid != os.getpid()]


def end_strays(output: Path) -> int:
    """End trainings that a harness which was killed has left behind, and return how many cells they were of.

    The trainings are asked first, so that they keep a checkpoint; what they have started ends after them. Call
    this with the folder's lock held.
    """
    strays = processes_of(output / "cells")
    for pid in _trainings(strays):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGINT)
    end = time.monotonic() + STOP_SECONDS
    while _trainings(processes_of(output / "cells")) and time.monotonic() < end:
        time.sleep(0.1)
    while left := processes_of(output / "cells"):
        end_processes([pid for pid, _ in left])
        time.sleep(0.02)
    return len({place for _, place in strays})


def _trainings(processes: list[tuple[int, Path]]) -> list[int]:
    """Return the ids of those that the harness started itself: each leads a session."""
    found = []
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == pid:
                found.append(pid)
    return found


def end_processes(pids: list[int]) -> None:
    """Kill processes that may be gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
