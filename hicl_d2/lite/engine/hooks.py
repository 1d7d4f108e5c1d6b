"""The usual hooks of a training: timing, schedule, checkpoints, evaluation, writers."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim.lr_scheduler import LRScheduler as _LRScheduler

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.engine.train_loop import HookBase
from hicl_d2.lite.evaluation.testing import flatten_results_dict
from hicl_d2.lite.solver import LRMultiplier
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.events import EventWriter

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]

__getattr__ = beyond_lite(__name__, "AutogradProfiler PreciseBN TorchMemoryStats TorchProfiler")

logger = logging.getLogger(__name__)

Callback = Callable[[Any], None]


class CallbackHook(HookBase):
    """Call the given functions, each with the trainer, at the points they are named after."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        given = {"before_train": before_train, "after_train": after_train}
        given |= {"before_step": before_step, "after_step": after_step}
        for point, callback in given.items():
            if callback is not None:
                setattr(self, point, lambda call=callback: call(self.trainer))


class IterationTimer(HookBase):
    """Put the seconds of each iteration into the event storage as ``time``, and log the speed in the end.

    Register it first: between its before_step and after_step lies the iteration, all else is "on hooks".
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        """``warmup_iter``: first iterations that do not count."""
        self._warmup_iter = warmup_iter
        self._training_start = self._step_start = time.perf_counter()
        self._seconds_in_steps = 0.0

    def before_train(self) -> None:
        self._training_start = time.perf_counter()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=now - self._step_start)
            self._seconds_in_steps += now - self._step_start
        else:
            self._training_start = now

    def after_train(self) -> None:
        total, steps = time.perf_counter() - self._training_start, self._seconds_in_steps
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and steps > 0:
            duration = timedelta(seconds=int(steps))
            speed = f"{counted} iterations in {duration} ({steps / counted:.4f} s / it)"
            logger.info(f"Overall training speed: {speed}")
        on_hooks = timedelta(seconds=int(total - steps))
        logger.info(f"Total training time: {timedelta(seconds=int(total))} ({on_hooks} on hooks)")


class PeriodicWriter(HookBase):
    """Let writers write every ``period`` iterations, after the last, and once more before they close."""

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
            writer.write()  # an evaluation after the last iteration, for example
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook: every ``period`` iterations, ``model_final`` in the end."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class EvalHook(HookBase):
    """Evaluate every ``eval_period`` iterations (0: never) and after the last one, on all ranks.

    What ``eval_function()`` returns, a nested dict of numbers or nothing, goes to the event storage.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True
    ) -> None:
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        if self._func and _evaluates(self._period, self.trainer):
            self._evaluate(self._func)

    def after_train(self) -> None:
        if self._func and self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate(self._func)
        self._func = None  # it may hold the trainer

    def _evaluate(self, function: Callable[[], Any]) -> None:
        results = function()
        if results:
            assert isinstance(results, dict), f"an evaluation must return a dict, not {results}"
            figures = {name: _number(name, value) for name, value in flatten_results_dict(results).items()}
            self.trainer.storage.put_scalars(**figures, smoothing_hint=False)
        comm.synchronize()  # ranks may take different times; the next iteration starts together


def _evaluates(period: int, trainer: Any) -> bool:
    """Return whether an evaluation follows this iteration (the last one's comes after training)."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"[EvalHook] figures must be numbers, but {name} is {value!r}") from error


class BestCheckpointer(HookBase):
    """Save a checkpoint when a metric is better than before; register it after the EvalHook that puts it."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """``val_metric``: a name in the event storage ("sem_seg/mIoU"); ``mode``: "max" or "min" is best."""
        assert mode in ("max", "min"), f"mode must be max or min, not {mode!r}"
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._sign = 1 if mode == "max" else -1
        self._name = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        if _evaluates(self._period, self.trainer):
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()

    def _check(self) -> None:
        if self._metric not in self.trainer.storage.latest():
            logger.warning(f"{self._metric} was not computed: no checkpoint is chosen by it.")
            return
        value, iteration = self.trainer.storage.latest()[self._metric]
        found = f"{self._metric} is {value:.5f} @ iteration {iteration}"
        better = self.best_metric is None or self._sign * value > self._sign * self.best_metric
        if not (better and math.isfinite(value)):
            logger.info(f"{found}: not better than {self.best_metric} @ iteration {self.best_iter}.")
            return
        self._checkpointer.save(self._name, iteration=iteration)
        logger.info(f"{found}: the best so far, saved as {self._name}.")
        self.best_metric, self.best_iter = value, iteration


class LRScheduler(HookBase):
    """Step a schedule after every iteration; put the rate that the iteration had into the event storage."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _LRScheduler | ParamScheduler | None = None,
    ) -> None:
        """What is not given is the trainer's. A ParamScheduler multiplies the optimiser's learning rates."""
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        trainer = self.trainer
        self._optimizer = self._optimizer or trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            settings = (self._optimizer, self.scheduler, trainer.max_iter)
            self._scheduler = LRMultiplier(*settings, last_iter=trainer.iter - 1)
        self._shown_group = self._optimizer.param_groups[self.get_best_param_group_id(self._optimizer)]

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Return the group whose rate stands for all: the largest, or the first with the commonest rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._shown_group["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(dict(state_dict))
