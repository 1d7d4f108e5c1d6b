"""The usual hooks of a training: timing, schedule, checkpoints, evaluation, writers."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from hicl_d2.lite.engine.train_loop import HookBase
from hicl_d2.lite.evaluation.testing import flatten_results_dict
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.events import EventWriter

__all__ = [
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

logger = logging.getLogger(__name__)

WARMUP_ITERATIONS = 3  # not counted by IterationTimer


class IterationTimer(HookBase):
    """Put the seconds of each iteration into the event storage as ``time``, and log the mean speed after training.

    Register it first: time outside its before_step and after_step is reported as spent on hooks. The first iterations
    are not counted.
    """

    def __init__(self) -> None:
        self._training_start = self._step_start = time.perf_counter()
        self._seconds_in_steps = 0.0

    def before_train(self) -> None:
        self._training_start = time.perf_counter()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= WARMUP_ITERATIONS:
            self.trainer.storage.put_scalars(time=now - self._step_start)
            self._seconds_in_steps += now - self._step_start
        else:
            self._training_start = now

    def after_train(self) -> None:
        total, steps = time.perf_counter() - self._training_start, self._seconds_in_steps
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - WARMUP_ITERATIONS
        if counted > 0 and steps > 0:
            duration = timedelta(seconds=int(steps))
            speed = f"{counted} iterations in {duration} ({steps / counted:.4f} s / it)"
            logger.info(f"Overall training speed: {speed}")
        on_hooks = timedelta(seconds=int(total - steps))
        logger.info(f"Total training time: {timedelta(seconds=int(total))} ({on_hooks} on hooks)")


class PeriodicWriter(HookBase):
    """Call writers every ``period`` iterations, after the last iteration, and once more before closing them."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()  # what later hooks put after the last iteration, such as an evaluation
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook: every ``period`` iterations, and ``model_final`` after the last."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class EvalHook(HookBase):
    """Evaluate every ``eval_period`` iterations (0: never) and after the last one, on all ranks.

    ``eval_function()`` returns a nested dict of numbers, which is put into the event storage, or nothing.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter  # then after_train evaluates
        if self._func and self._period > 0 and done % self._period == 0 and not is_last:
            self._evaluate(self._func)

    def after_train(self) -> None:
        if self._func and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate(self._func)
        self._func = None  # a method of the trainer would keep it alive

    def _evaluate(self, function: Callable[[], Any]) -> None:
        results = function()
        if results:
            assert isinstance(results, dict), f"an evaluation must return a dict, not {results}"
            figures = {name: _number(name, value) for name, value in flatten_results_dict(results).items()}
            self.trainer.storage.put_scalars(**figures, smoothing_hint=False)
        comm.synchronize()  # ranks may take different times; the next iteration starts together


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"[EvalHook] figures must be numbers, but {name} is {value!r}") from error


class LRScheduler(HookBase):
    """Step the trainer's ``scheduler`` after every iteration; log the learning rate that the iteration had."""

    def before_train(self) -> None:
        groups = self.trainer.optimizer.param_groups
        self._shown_group = groups[self.get_best_param_group_id(self.trainer.optimizer)]

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Return the group whose learning rate is logged: the largest, or the first with the commonest rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._shown_group["lr"], smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.scheduler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        logger.info("Loading scheduler from state_dict ...")
        self.trainer.scheduler.load_state_dict(dict(state_dict))
