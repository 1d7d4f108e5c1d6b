"""Run cells on this machine, as many at a time as there are slots."""

import contextlib
import itertools
import os
import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hicl_d2.command.console import Console, duration
from hicl_d2.command.errors import InputError
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.environment import environment
from hicl_d2.harness.failures import OUT_OF_MEMORY, Failure
from hicl_d2.harness.folder import write_manifest
from hicl_d2.harness.matrix import MAIN_METRIC
from hicl_d2.harness.results import number, read_result
from hicl_d2.harness.signals import DRAIN, GO, KILL, STOP, Signals
from hicl_d2.harness.slots import Slots
from hicl_d2.harness.training import STOP_SECONDS, Training, command

POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """Failures of a run by slug, and why it left cells out that it could have started (None: it did not)."""

    failed: dict[str, Failure] = field(default_factory=dict)
    left_out: str | None = None


class LocalExecutor:
    """A pool of trainings on this machine.

    ``labels`` are what the cells are called on the console, by slug.
    """

    def __init__(
        self,
        script: Path,
        output: Path,
        matrix: str,
        slots: Slots,
        fail_fast: bool,
        console: Console,
        signals: Signals,
        labels: dict[str, str],
    ) -> None:
        self._script = script
        self._output = output
        self._matrix = matrix
        self._slots = slots
        self._fail_fast = fail_fast
        self._console = console
        self._signals = signals
        self._labels = labels
        self._waiting: deque[Cell] = deque()
        self._running: list[Training] = []
        self._started: list[Training] = []
        self._tries: Counter[tuple[str, str]] = Counter()
        self._alone: set[str] = set()
        self._said = GO
        self._stop_end = 0.0
        self._is_closed = False
        self._outcome = Outcome()

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Run ``cells`` and return what failed; raises Interrupted after a signal, with every training ended."""
        for cell in cells:
            self._slots.check(cell.resources, cell.name)
        self._waiting.extend(cells)
        environment()  # ask for it once, before anything is timed
        with self._signals.noted():
            try:
                while self._running or (self._waiting and self._is_open()):
                    self._heed_signals()
                    if self._is_open():
                        self._start_what_fits()
                        self._announce()
                        self._prepare()
                    self._wait()
                    self._collect()
                    self._show()
            finally:
                for training in self._running:
                    training.kill()
        return self._outcome

    def _is_open(self) -> bool:
        return self._signals.level == GO and not self._is_closed

    # ------------------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        """Start waiting cells in order; a smaller one may overtake one that does not fit now."""
        passed: list[Cell] = []
        while self._waiting and self._is_open():
            cell = self._waiting.popleft()
            slot = self._slots.take(cell.resources, cell.slug in self._alone)
            if slot is None:
                passed.append(cell)
                if not cell.resources.gpus or not self._slots.gpus:
                    break  # no slot on the CPU is left for any other either
                continue
            write_manifest(cell, self._matrix, self._output, command(cell, self._script, self._output))
            try:
                training = Training(cell, self._script, self._output, slot)
            except InputError as error:
                self._slots.give_back(slot)
                self._console.say(f"{self._label(cell)}: not started, {error}")
                self._outcome.failed[cell.slug] = Failure("busy", str(error))
                continue
            self._started.append(training)
            self._running.append(training)
        self._waiting.extendleft(reversed(passed))

    def _announce(self) -> None:
        """Say what was started, after what has ended."""
        for training in self._started:
            where = f" on {training.slot}" if training.slot.gpus else ""
            self._console.say(f"{self._label(training.cell)}: started{where}")
        self._started.clear()

    def _label(self, cell: Cell) -> str:
        return self._labels.get(cell.slug, cell.name)

    def _wait(self) -> None:
        """Wait until a training ends, POLL_SECONDS at most."""
        poll = select.poll()
        handles = []
        for training in self._running:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(training.process.pid))
                poll.register(handles[-1], select.POLLIN)
        try:
            poll.poll(POLL_SECONDS * 1000)
        finally:
            for handle in handles:
                os.close(handle)

    def _prepare(self) -> None:
        """Write the manifest of the next cell in the time that the others train."""
        for cell in itertools.islice(self._waiting, 1):
            write_manifest(cell, self._matrix, self._output, command(cell, self._script, self._output))

    def _collect(self) -> None:
        """Free the slots of trainings that have ended, start the next ones, then record how the former ended."""
        ended = [training for training in self._running if training.has_ended()]
        shared = [self._slots.is_shared(training.slot) for training in ended]
        for training in ended:
            training.kill()
            self._running.remove(training)
            self._slots.give_back(training.slot)
        # With --fail-fast a failure ends the run, so judge those that ended before starting others.
        if self._is_open() and not self._fail_fast and all(t.process.returncode == 0 for t in ended):
            self._start_what_fits()
        for training, was_shared in zip(ended, shared, strict=True):
            self._judge(training, training.finish(), was_shared)
        self._announce()

    def _judge(self, training: Training, failure: Failure | None, was_shared: bool) -> None:
        """Say how a training ended, and try again where that helps."""
        cell, label = training.cell, self._label(training.cell)
        if failure is None:
            result = read_result(training.folder)
            if result is not None:
                self._console.say(f"{label}: done in {duration(training.seconds)}, {headline(result)}")
            return
        self._tries[cell.slug, failure.kind] += 1
        if self._signals.level == GO and not self._is_closed:
            if failure.kind == OUT_OF_MEMORY and was_shared and cell.slug not in self._alone:
                self._console.say(
                    f"{label}: out of memory while sharing its GPU; retrying on a GPU of its own"
                )
                self._alone.add(cell.slug)
                self._waiting.append(cell)
                return
            if self._tries[cell.slug, failure.kind] <= failure.rule.retries:
                self._console.say(f"{label}: {failure.message}; it goes on from its last checkpoint")
                self._waiting.appendleft(cell)
                return
        self._outcome.failed[cell.slug] = failure
        log = training.folder / "stderr.txt"
        self._console.say(f"{label}: FAILED, {failure.message} (all of it: {log}); {failure.rule.advice}")
        if self._fail_fast:
            self._close("a cell failed")
            self._stop_running()
        elif failure.rule.ends_run:
            self._close(failure.message)

    def _close(self, reason: str) -> None:
        """Start nothing more."""
        self._is_closed = True
        self._outcome.left_out = reason
        self._console.say(f"no further cell is started: {reason}")

    # ------------------------------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        level = self._signals.level
        if level >= DRAIN and self._said < DRAIN:
            count = len(self._running)
            self._console.say(
                f"draining: {count} running to the end, no further one is started (Ctrl-C again: stop them)"
            )
        if level >= STOP and self._said < STOP:
            self._console.say("stopping after this iteration, to keep a checkpoint (Ctrl-C again: at once)")
            self._stop_running()
        is_late = self._stop_end and time.monotonic() > self._stop_end
        if level >= KILL or is_late:
            for training in self._running:
                training.kill()
        self._said = level

    def _stop_running(self) -> None:
        self._stop_end = time.monotonic() + STOP_SECONDS
        for training in self._running:
            training.ask_to_stop()

    def _show(self) -> None:
        if len(self._running) == 1:
            training = self._running[0]
            self._console.progress(lambda: f"{self._label(training.cell)}: {training.describe()}")
        elif self._running:
            self._console.progress(
                lambda: (
                    f"{len(self._running)} running, {len(self._waiting)} waiting; "
                    + "; ".join(f"{self._label(t.cell)}: {t.describe()}" for t in self._running)
                )
            )


def headline(result: dict) -> str:
    """Return the score of a result, for a line on the console."""
    score = number(((result.get("metrics") or {}).get("last") or {}).get(MAIN_METRIC))
    return "no score" if score is None else f"mIoU {score:.1f}"
