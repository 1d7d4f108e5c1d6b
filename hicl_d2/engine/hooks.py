"""Hooks and writers that the trainer adds to Detectron2's."""

import json
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hicl_d2.command import interrupts
from hicl_d2.command.console import console, duration
from hicl_d2.command.files import atomic_open, check_regular
from hicl_d2.command.live import Work
from hicl_d2.d2.engine import HookBase
from hicl_d2.d2.utils import EventWriter, comm, get_event_storage
from hicl_d2.engine.checkpoint import FINAL, Checkpoints
from hicl_d2.engine.memory import peak_memory_mb
from hicl_d2.evaluation.metrics import finite

logger = logging.getLogger(__name__)

WRITE_PERIOD = 20  # iterations; Detectron2's, and the window over which its writers take medians
# Losses that are shown have this name; those of Mask2Former's inner layers, which end in their number, do not.
LOSS = re.compile(r"(?!.*_\d+$)[^/]*loss[^/]*")
# Scalars that tell how long something took in one process; they mean nothing in the next.
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


class MetricsFile(EventWriter):
    """Writer of ``metrics.json`` in Detectron2's format, with no iteration twice after a resume.

    The file is neither created nor changed before :meth:`start`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last_written = -1
        # Called with each line that was written: its iteration, and its figures by name.
        self.followers: list[Callable[[int, Mapping[str, float]], None]] = []

    def start(self, start_iter: int) -> None:
        """Remove the lines from ``start_iter`` on: training writes them again."""
        kept = [line for line in self._lines() if line["iteration"] < start_iter]
        self.last_written = max((line["iteration"] for line in kept), default=-1)
        with atomic_open(self.path) as stream:
            stream.writelines(_json_line(line) for line in kept)

    def _lines(self) -> list[dict[str, Any]]:
        """Return the complete lines; if the process was killed while writing, the last one is not."""
        if not self.path.exists():
            return []
        check_regular(self.path)
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("iteration"), int):
                found.append(line)
        return found

    def has(self, iteration: int, name: str) -> bool:
        """Return whether the scalar ``name`` of ``iteration`` is in the file."""
        return any(line["iteration"] == iteration and name in line for line in self._lines())

    def write(self) -> None:
        """Append a line for each iteration since the last call; all lines are written, or none.

        As in Detectron2, a line has the newest value of each scalar. The figures of evaluations are all written, even if
        there were several evaluations since the last call.
        """
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        storage = get_event_storage()
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WRITE_PERIOD).items():
            if iteration > self.last_written:
                lines[iteration][name] = value
        for name in self._evaluated(storage):
            for value, iteration in storage.history(name).values():
                if iteration > self.last_written:
                    lines[int(iteration)][name] = value
        if not lines:
            return
        text = "".join(_json_line({**lines[i], "iteration": i}) for i in sorted(lines))
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            os.truncate(self.path, size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.last_written = max(lines)
        for iteration in sorted(lines):
            for follow in self.followers:
                follow(iteration, lines[iteration])

    def _evaluated(self, storage: Any) -> list[str]:
        """Return the names of the figures of evaluations and of the branch: with a slash, and not smoothed."""
        return [name for name, smooth in storage.smoothing_hints().items() if "/" in name and not smooth]


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, sort_keys=True) + "\n"


class RecentEvents(HookBase):
    """Save the newest scalars in checkpoints, so that medians after a resume equal those of an uninterrupted run."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def before_train(self) -> None:
        for name, kept in self._restored.items():
            for value, iteration in kept["values"]:
                self.trainer.storage.put_scalar(
                    name, value, smoothing_hint=kept["smooth"], cur_iter=iteration
                )
        self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: {"values": _recent(history.values()), "smooth": hints[name]}
            for name, history in storage.histories().items()
            if name not in TIMES
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._restored = dict(state)


def _recent(values: Sequence[tuple[float, float]]) -> list[list[float]]:
    newest = values[-1][1]
    return [[float(value), int(i)] for value, i in values[-WRITE_PERIOD:] if i > newest - WRITE_PERIOD]


class Stopwatch(HookBase):
    """Measure the seconds spent in steps, in evaluation and in total, summed over all resumes of a run."""

    def __init__(self) -> None:
        self.before = {"total": 0.0, "steps": 0.0, "evaluation": 0.0, "iterations": 0}
        self.evaluation = 0.0
        self._steps = 0.0
        self._iterations = 0
        self._start = self._step_start = time.perf_counter()

    def before_train(self) -> None:
        self._start = time.perf_counter()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter > 0:  # the first step starts workers and fills caches
            self._steps += time.perf_counter() - self._step_start
            self._iterations += 1

    def state_dict(self) -> dict[str, Any]:
        now = {
            "total": time.perf_counter() - self._start,
            "steps": self._steps,
            "evaluation": self.evaluation,
            "iterations": self._iterations,
        }
        return {name: self.before[name] + value for name, value in now.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before = dict(state)

    def seconds(self) -> dict[str, float | None]:
        """Return the seconds in total, per iteration (None before the second one) and in evaluation."""
        state = self.state_dict()
        each = state["steps"] / state["iterations"] if state["iterations"] else None
        return {"total": state["total"], "per_iteration": each, "evaluation": state["evaluation"]}


class StepBoundary(HookBase):
    """Defer signals to the end of the iteration, and raise Interrupted there; :meth:`save` then saves a checkpoint.

    Register it right after the periodic checkpoints: later hooks may take long, and are repeated on resume.
    """

    def __init__(self, checkpointer: Checkpoints) -> None:
        self._checkpointer = checkpointer
        self.is_between_steps = False

    def before_step(self) -> None:
        interrupts.defer()
        self.is_between_steps = False

    def after_step(self) -> None:
        signum = interrupts.release()
        self.is_between_steps = True
        if signum is not None:
            raise interrupts.Interrupted(signum)

    def save(self) -> None:
        """Save a checkpoint of the last complete iteration, unless there is one already."""
        iteration = self.trainer.iter
        if (
            self.is_between_steps
            and iteration < self.trainer.max_iter
            and self._checkpointer.saved != iteration
        ):
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            console.say(f"saved a checkpoint after iteration {iteration}; --resume goes on from there")


class CatchUp(HookBase):
    """On resume, do what was due after the checkpoint's iteration and is missing: an evaluation, a line of metrics, the
    final checkpoint.
    """

    def __init__(
        self,
        checkpointer: Checkpoints,
        evaluations: Sequence[Any],
        metrics: MetricsFile,
        period: int,
        name: str,
    ) -> None:
        """``evaluations``: the hooks that evaluate and use the result; ``period``: TEST.EVAL_PERIOD; ``name``: a scalar
        that every evaluation puts, which shows that it was done.
        """
        self._checkpointer = checkpointer
        self._evaluations = evaluations
        self._metrics = metrics
        self._period = period
        self._name = name

    def before_train(self) -> None:
        done = self.trainer.start_iter
        main = comm.is_main_process()
        if main:
            self._metrics.start(done)
            if done == self.trainer.max_iter:
                self._save_final(done - 1)
        if not 0 < done < self.trainer.max_iter:
            return
        is_due = self._period > 0 and done % self._period == 0
        if is_due and not comm.all_gather(self._is_known(done - 1))[0]:
            self._after(done - 1, self._evaluations)
        if main and done % WRITE_PERIOD == 0 and self._metrics.last_written < done - 1:
            self._metrics.write()

    def _save_final(self, iteration: int) -> None:
        """Save the final checkpoint, unless the run was resumed from it."""
        resumed = self._checkpointer.resumed
        if resumed is None or resumed.stem != FINAL:
            self.trainer.iter = iteration
            self._checkpointer.save(FINAL, iteration=iteration)
            self.trainer.iter = iteration + 1

    def _is_known(self, iteration: int) -> bool:
        """Return whether the figures of the evaluation after ``iteration`` are in the checkpoint or in the file."""
        _, newest = self.trainer.storage.latest().get(self._name, (None, -1))
        return newest == iteration or self._metrics.has(iteration, self._name)

    def _after(self, iteration: int, hooks: Sequence[Any]) -> None:
        """Call ``hooks`` as they are called after ``iteration``."""
        trainer = self.trainer
        trainer.iter = trainer.storage.iter = iteration
        for hook in hooks:
            hook.after_step()
        trainer.iter = trainer.storage.iter = iteration + 1


class BestCheckpoint(HookBase):
    """Save the weights with the highest value of one metric in ``model_best.pth``; a resumed run keeps the best so far.

    Register it after the evaluation.
    """

    def __init__(self, checkpointer: Checkpoints, name: str, period: int) -> None:
        """``name``: the scalar to maximise; ``period``: TEST.EVAL_PERIOD."""
        self._checkpointer = checkpointer
        self._name = name
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self.check()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self.check()

    def check(self) -> None:
        """Save the weights if the newest evaluation is the best so far."""
        latest = self.trainer.storage.latest().get(self._name)
        if latest is None or not math.isfinite(latest[0]):
            return
        value, iteration = latest
        best = self._checkpointer.best()
        if best is None or value > best["metrics"][self._name]:
            self._checkpointer.save_best(int(iteration), finite(self.trainer.last_metrics()))
            logger.info(
                f"{self._name} {value:.4f} at iteration {iteration} is the best so far: model_best.pth"
            )


class Progress(HookBase):
    """Show iteration, losses, learning rate, speed, memory and the time left on the console; the total loss elsewhere than
    on a terminal.
    """

    def __init__(self, images: int, device: str) -> None:
        """``images`` are those of an iteration, of all processes; ``device`` is where the model is."""
        self._images = images
        self._device = device

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        console.progress(self._line, is_last=done == total, work=self._work)

    def _line(self) -> str:
        trainer, storage = self.trainer, self.trainer.storage
        parts = [f"iteration {trainer.iter + 1}/{trainer.max_iter}"]
        for name, shown in (("total_loss", "loss"), ("lr", "lr")):
            if name in storage.latest():
                parts.append(f"{shown} {self._value(name):.4g}")
        if "time" in storage.latest():
            seconds = storage.history("time").median(100)
            parts += [f"{1 / max(seconds, 1e-9):.2f} it/s", f"ETA {self._left(seconds)}"]
        return "  ".join(parts)

    def _work(self) -> Work:
        trainer, storage = self.trainer, self.trainer.storage
        names = [name for name in storage.latest() if LOSS.fullmatch(name)]
        names.sort(key=lambda name: (name != "total_loss", name))
        figures = [(name, f"{self._value(name):.4g}") for name in names]
        left = ""
        if "lr" in storage.latest():
            figures.append(("lr", f"{self._value('lr'):.4g}"))
        if "time" in storage.latest():
            seconds = storage.history("time").median(100)
            figures.append(("images/s", f"{self._images / max(seconds, 1e-9):.3g}"))
            left = self._left(seconds)
        figures.append(("memory", f"{peak_memory_mb(self._device) / 1024:.2f} GiB"))
        return Work("iteration", trainer.iter + 1, trainer.max_iter, left, figures)

    def _left(self, seconds: float) -> str:
        return duration(seconds * (self.trainer.max_iter - self.trainer.iter - 1))

    def _value(self, name: str) -> float:
        history = self.trainer.storage.history(name)
        return history.latest() if name == "lr" else history.median(WRITE_PERIOD)
