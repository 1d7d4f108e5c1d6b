"""The interface of an evaluator, and the loop that feeds one."""

import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hicl_d2.lite.utils import comm

logger = logging.getLogger(__name__)

WARMUP_BATCHES = 5  # not counted in the times, which caches still change
SECONDS_BETWEEN_REPORTS = 5


class DatasetEvaluator:
    """Base class of evaluators: ``reset`` once, ``process`` for every batch, ``evaluate`` once."""

    def reset(self) -> None:
        """Discard what was processed so far."""

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        """Process one batch: the model's ``inputs`` and, in the same order, its ``outputs``."""

    def evaluate(self) -> dict[str, Any] | None:
        """Return {task: {metric: score}}, None on processes other than the main one."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one, with their results in one dictionary; no two may report the same task."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if comm.is_main_process() and results is not None:
                twice = joined.keys() & results.keys()
                assert not twice, f"two evaluators give results under the same task: {', '.join(twice)}"
                joined.update(results)
        return joined


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode, and restore its mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run ``model`` over ``data_loader`` without gradients and return the evaluator's results.

    The loader must have a length. An ``nn.Module`` is put into eval mode for the run. A list of evaluators is joined;
    None only measures the time. ``callbacks`` may hold functions named on_start, before_inference, after_inference and
    on_end.
    """
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator or [])

    def call(name: str) -> None:
        (callbacks or {}).get(name, lambda: None)()

    logger.info("Start inference on %d batches", len(data_loader))
    evaluator.reset()
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        call("on_start")
        clock = _Clock(len(data_loader))
        for inputs in data_loader:
            clock.lap("data")
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.lap("compute")
            evaluator.process(inputs, outputs)
            clock.lap("eval")
            clock.count_batch()
        call("on_end")
    clock.summarise()
    results = evaluator.evaluate()
    return {} if results is None else results


class _Clock:
    """Seconds per stage of the loop, logged in Detectron2's words, which tools that read its logs look for."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.warmup = min(WARMUP_BATCHES, total - 1)
        self.reported = -math.inf
        self._restart()

    def _restart(self) -> None:
        self.counted = 0
        self.spent = {"data": 0.0, "compute": 0.0, "eval": 0.0}
        self.start = self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.spent[stage] += now - self.last
        self.last = now

    def count_batch(self) -> None:
        self.done += 1
        self.counted += 1
        is_slow = self.spent["compute"] > SECONDS_BETWEEN_REPORTS * self.counted
        is_due = self.last - self.reported >= SECONDS_BETWEEN_REPORTS
        if is_due and (is_slow or self.done > 2 * self.warmup):
            logger.info(self._progress())
            self.reported = self.last
        if self.done == self.warmup:
            self._restart()

    def _progress(self) -> str:
        data, compute, evaluation = (seconds / self.counted for seconds in self.spent.values())
        whole = (self.last - self.start) / self.counted
        return (
            f"Inference done {self.done}/{self.total}. Dataloading: {data:.4f} s/iter. "
            f"Inference: {compute:.4f} s/iter. Eval: {evaluation:.4f} s/iter. Total: {whole:.4f} s/iter. "
            f"ETA={datetime.timedelta(seconds=int(whole * (self.total - self.done)))}"
        )

    def summarise(self) -> None:
        form = "Total inference %s: %s (%.6f s / iter per device, on %d devices)"
        times = {"time": time.perf_counter() - self.start, "pure compute time": self.spent["compute"]}
        for what, seconds in times.items():
            per_batch = seconds / (self.total - self.warmup)
            logger.info(form, what, datetime.timedelta(seconds=seconds), per_batch, comm.get_world_size())
