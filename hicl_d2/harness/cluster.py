"""Run cells on SLURM: an array of jobs for all that need the same resources, through submitit.

A job is one cell. The harness waits for its files to change; it may be stopped or killed meanwhile, and finds the
jobs that are still there by their numbers in the attempts.
"""

import contextlib
import os
import re
import subprocess
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hicl_d2.command.console import Console, duration
from hicl_d2.command.errors import InputError
from hicl_d2.command.shipped import HOME, IS_CHECKOUT
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell, Resources
from hicl_d2.harness.failures import KILLED, NO_RESULT, Failure
from hicl_d2.harness.folder import states
from hicl_d2.harness.job import STOP_FILE, CellJob
from hicl_d2.harness.local import Outcome, headline
from hicl_d2.harness.signals import DRAIN, GO, KILL, STOP, Signals
from hicl_d2.harness.training import command
from hicl_d2.harness.workspace import Workspace

LOG_FOLDER = "slurm"
POLL_SECONDS = 1.0
QUEUE_SECONDS = 5.0
# A job that was requeued is gone from the queue for a moment.
GONE_SECONDS = 15.0
MOST_REQUEUES = 100
# SLURM tells a job this long before its time is over; a training needs it to keep a checkpoint.
SIGNAL_SECONDS = 90


class SlurmExecutor:
    """Run cells as jobs of a cluster; same interface as the local executor."""

    def __init__(
        self,
        workspace: Workspace,
        options: Namespace,
        console: Console,
        signals: Signals,
        labels: dict[str, str],
    ) -> None:
        self._workspace = workspace
        self._output = workspace.output
        self._options = options
        self._console = console
        self._signals = signals
        self._labels = labels
        self._jobs: dict[str, str] = {}  # by slug
        self._cells: dict[str, Cell] = {}
        self._gone: dict[str, float] = {}  # since when a job has not been in the queue
        self._tries: Counter[str] = Counter()
        self._states: dict[str, str] = {}
        self._said = GO
        self._is_closed = False
        self._outcome = Outcome()

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Submit ``cells`` that no job has yet, wait for all, and return what failed."""
        for cell in cells:
            self._cells[cell.slug] = cell
            (cell.folder(self._output) / STOP_FILE).unlink(missing_ok=True)
        there = queue()
        new = []
        for cell in cells:
            job = (self._workspace.states[cell.slug].attempt or {}).get("job")
            if job is not None and job in there:
                self._jobs[cell.slug] = job
                self._console.say(f"{self._labels[cell.slug]}: is job {job} already")
            else:
                new.append(cell)
        with self._signals.noted():
            self._submit(new)
            checked = 0.0
            while self._jobs:
                self._heed_signals()
                self._look()
                if time.monotonic() - checked > QUEUE_SECONDS:
                    self._find_lost()
                    checked = time.monotonic()
                counts = Counter(self._states.get(slug, files.QUEUED) for slug in self._jobs)
                shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
                self._console.progress(lambda shown=shown: f"on SLURM: {shown}")  # type: ignore[misc]
                if self._jobs:
                    time.sleep(POLL_SECONDS)
        return self._outcome

    # ------------------------------------------------------------------------------------------------------

    def _submit(self, cells: Iterable[Cell]) -> None:
        """Submit a job array for each set of resources, and record every cell's job in a new attempt."""
        kinds: dict[Resources, list[Cell]] = {}
        for cell in cells:
            kinds.setdefault(cell.resources, []).append(cell)
        script = self._options.train_script.resolve()
        for needs, alike in kinds.items():
            for cell in alike:
                words = command(cell, script, self._output)
                files.write_manifest(cell, self._workspace.matrix.name, self._output, words)
            tasks = [CellJob(cell, script, self._output.resolve()) for cell in alike]
            for cell, job in zip(alike, self._array(needs, tasks), strict=True):
                files.new_attempt(cell.folder(self._output), files.QUEUED, job=job)
                self._jobs[cell.slug] = job
                self._console.say(f"{self._labels[cell.slug]}: job {job}")

    def _array(self, needs: Resources, tasks: list[CellJob]) -> list[str]:
        try:
            import submitit
        except ImportError:
            raise InputError("--executor slurm needs submitit: pip install 'hicl-d2[slurm]'") from None
        executor = submitit.SlurmExecutor(self._output / LOG_FOLDER, max_num_timeout=MOST_REQUEUES)
        executor.update_parameters(**self._parameters(needs))
        # The job imports this package. An installed one it finds by itself: in front of Python's own modules, the folder
        # of all packages could hide some of them.
        paths = [str(HOME) if IS_CHECKOUT else "", os.environ.get("PYTHONPATH", "")]
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"SLURM does not take the jobs: {' '.join(str(error).split())}") from None
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
        return [job.job_id for job in jobs]

    def _parameters(self, needs: Resources) -> dict[str, Any]:
        """Return the options of sbatch, in submitit's names."""
        found: dict[str, Any] = {
            "job_name": self._workspace.matrix.name,
            "time": self._options.job_minutes,
            "cpus_per_task": needs.cpus,
            "array_parallelism": self._options.max_cells,
            "signal_delay_s": min(SIGNAL_SECONDS, 30 * self._options.job_minutes),
            "additional_parameters": {"requeue": True},
            "partition": self._options.partition,
            "account": self._options.account,
            "gpus_per_node": needs.gpus or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    # ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the state of every cell and report those that have ended."""
        for slug in list(self._jobs):
            cell = self._cells[slug]
            state = states((cell,), self._output)[slug]
            self._states[slug] = state.name
            label = self._labels[slug]
            if state.name == files.DONE:
                del self._jobs[slug]
                took = duration(float((state.attempt or {}).get("seconds") or 0))
                self._console.say(f"{label}: done in {took}, {headline(state.result or {})}")
            elif state.name == files.FAILED and state.failure is not None:
                self._fail(cell, state.failure)
            elif state.name == files.DAMAGED:
                self._fail(cell, Failure(NO_RESULT, state.note))

    def _find_lost(self) -> None:
        """Find jobs that left the queue without a result, and submit their cells again."""
        there = queue()
        now = time.monotonic()
        for slug, job in list(self._jobs.items()):
            if job in there:
                self._gone.pop(slug, None)
                continue
            if now - self._gone.setdefault(slug, now) < GONE_SECONDS:
                continue
            cell = self._cells[slug]
            state = states((cell,), self._output)[slug]
            if state.name in (files.DONE, files.FAILED, files.DAMAGED):
                continue
            attempt = dict(
                state.attempt or files.new_attempt(cell.folder(self._output), files.QUEUED, job=job)
            )
            is_asked = self._signals.level > GO or self._is_closed
            failure = None if is_asked else Failure(KILLED, f"job {job} left the queue without a result")
            files.end_attempt(cell.folder(self._output), attempt, 0.0, None, failure)
            del self._jobs[slug]
            del self._gone[slug]
            if failure is not None:
                self._tries[slug] += 1
                if self._tries[slug] <= failure.rule.retries:
                    self._console.say(f"{self._labels[slug]}: {failure.message}; it is submitted again")
                    self._submit([cell])
                else:
                    self._fail(cell, failure)

    def _fail(self, cell: Cell, failure: Failure) -> None:
        self._jobs.pop(cell.slug, None)
        self._outcome.failed[cell.slug] = failure
        log = cell.folder(self._output) / "stderr.txt"
        self._console.say(
            f"{self._labels[cell.slug]}: FAILED, {failure.message} (all of it: {log}); {failure.rule.advice}"
        )
        if self._options.fail_fast and not self._is_closed:
            self._is_closed = True
            self._outcome.left_out = "a cell failed"
            self._console.say("no further cell is started: a cell failed")
            self._cancel_waiting()
            self._stop_running()

    def _heed_signals(self) -> None:
        level = self._signals.level
        if level >= DRAIN and self._said < DRAIN:
            self._console.say(
                "draining: waiting jobs are cancelled, running ones go on (Ctrl-C again: stop them)"
            )
            self._cancel_waiting()
        if level >= STOP and self._said < STOP:
            self._console.say("stopping after this iteration, to keep a checkpoint (Ctrl-C again: at once)")
            self._cancel_waiting()
            self._stop_running()
        if level >= KILL and self._said < KILL:
            _slurm("scancel", *self._jobs.values())
        self._said = level

    def _cancel_waiting(self) -> None:
        if self._jobs:
            _slurm("scancel", "--state=PENDING", *self._jobs.values())

    def _stop_running(self) -> None:
        """Ask the jobs to stop, by the file that they poll for."""
        for slug in self._jobs:
            with contextlib.suppress(OSError):
                files.touch(self._cells[slug].folder(self._output) / STOP_FILE)


def queue() -> set[str]:
    """Return the numbers of all jobs of this user that wait or run; array tasks one by one."""
    done = _slurm("squeue", "--me", "--noheader", "--array", "--format=%i")
    return set(done.split())


def _slurm(*words: str) -> str:
    """Run one of SLURM's tools; InputError if there is none or it cannot reach the cluster."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"--executor slurm needs SLURM: {words[0]} is not on this machine") from None
    if done.returncode and words[0] == "squeue":
        said = done.stderr.strip().splitlines() or [f"squeue ended with status {done.returncode}"]
        reason = re.sub(r"^squeue: ((error|fatal): )?", "", said[-1])
        raise InputError(
            f"--executor slurm does not reach the cluster ({reason}); start it where squeue works, or run with --executor local"
        )
    return done.stdout
