"""What a job of the cluster does: train one cell, and go on with it after preemption or time-out."""

import time
from pathlib import Path
from typing import Any

from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.results import read_result
from hicl_d2.harness.slots import Slot
from hicl_d2.harness.training import STOP_SECONDS, Training

STOP_FILE = "stop"
POLL_SECONDS = 0.5
# SLURM sends USR2 to every process of a job. It is meant for submitit and would kill the training: ignore it there.
DEAF_TO_SLURM = ("/bin/sh", "-c", """trap '' USR2; exec "$@\"""", "sh")


class CellJob:
    """A cell as submitit's function; ``checkpoint`` is called when SLURM takes the node away."""

    def __init__(self, cell: Cell, script: Path, output: Path) -> None:
        self._cell = cell
        self._script = script
        self._output = output
        self._training: Training | None = None

    def __call__(self) -> str:
        """Train to the end and return how it ended; a cell that is done or was asked to stop is not started."""
        folder = self._cell.folder(self._output)
        if read_result(folder) is not None:
            return "done before"
        if (folder / STOP_FILE).exists():
            return "stopped before"
        tries = 0
        while True:
            slot = Slot(processes=self._cell.resources.gpus)
            self._training = Training(self._cell, self._script, self._output, slot, DEAF_TO_SLURM)
            while not self._training.has_ended():
                if (folder / STOP_FILE).exists():
                    self._stop()
                time.sleep(POLL_SECONDS)
            failure = self._training.finish()
            if failure is None or tries >= failure.rule.retries:
                return "done" if failure is None else failure.kind
            tries += 1

    def _stop(self) -> None:
        """Let the training keep a checkpoint, and end it."""
        if self._training is None:
            return
        self._training.ask_to_stop()
        end = time.monotonic() + STOP_SECONDS
        while not self._training.has_ended() and time.monotonic() < end:
            time.sleep(0.1)
        self._training.kill()

    def checkpoint(self) -> Any:
        """Stop the training with a checkpoint and return what submitit is to queue again."""
        import submitit

        self._stop()
        if self._training is not None:
            self._training.finish()
            files.new_attempt(self._training.folder, files.QUEUED, job=self._job())
        return submitit.helpers.DelayedSubmission(CellJob(self._cell, self._script, self._output))

    def _job(self) -> str:
        import submitit

        return str(submitit.JobEnvironment().job_id)
