"""Where the time of a training step goes, part by part."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = ["PARTS", "Parts", "watched"]

LOADER, FORWARD, BRANCH, BACKWARD = "loader", "forward", "branch", "backward"
CHECK, OPTIMISER, LOGGING, REST = "gradient check", "optimiser", "logging", "rest"
PARTS = (LOADER, FORWARD, BRANCH, BACKWARD, CHECK, OPTIMISER, LOGGING, REST)
# What the trainers call their own parts. A method that a trainer does not have is passed over.
METHODS = {
    "_norm_of_gradients": CHECK,
    "_is_bad_anywhere": CHECK,
    "_log": LOGGING,
    "_write_metrics": LOGGING,
}


class Parts:
    """Seconds by part. A part inside a part counts for itself alone; what is in none is the rest."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._on_gpu = device.type == "cuda"
        self._clock = time.perf_counter if self._on_gpu or torch.get_num_threads() > 1 else time.process_time
        self._stack = [REST]
        self._since = self._clock()

    def _switch(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()  # what was asked for is of the part that asked
        now = self._clock()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as ``name``."""
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return ``call``, counted as ``name``."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return counted

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count from here to the end of the block."""
        self._since = self._clock()
        yield
        self._switch()


class _Batches:
    """A loader whose time counts as the loader's."""

    def __init__(self, batches: Iterator[Any], parts: Parts) -> None:
        self._batches, self._parts = batches, parts

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._parts.part(LOADER):
            return next(self._batches)


@contextmanager
def watched(step: Any, hooks: Iterable[Any], batches: str, parts: Parts) -> Iterator[None]:
    """Count the parts of a trainer's steps inside the block.

    Args:
        step: what has ``model``, ``optimizer`` and the methods in METHODS.
        hooks: of the trainer.
        batches: attribute of ``step`` that is the iterator over batches.
        parts: where it is counted.
    """
    model: nn.Module = step.model
    before = {name: dict(getattr(model, name)) for name in ("_forward_pre_hooks", "_forward_hooks")}
    with mock.patch.object(step, batches, _Batches(getattr(step, batches), parts)):
        patches = [
            mock.patch.object(model, "forward", parts.around(model.forward, FORWARD)),
            mock.patch.object(Tensor, "backward", _method(parts, Tensor.backward)),
            *(
                mock.patch.object(
                    step.optimizer, name, parts.around(getattr(step.optimizer, name), OPTIMISER)
                )
                for name in ("step", "zero_grad")
            ),
            *(
                mock.patch.object(step, name, parts.around(getattr(step, name), part))
                for name, part in METHODS.items()
                if hasattr(step, name)
            ),
            *(
                mock.patch.object(hook, name, parts.around(getattr(hook, name), LOGGING))
                for hook in hooks
                for name in ("before_step", "after_step")
            ),
        ]
        for name, calls in before.items():  # the branch's; a plain model has none
            for key, call in calls.items():
                getattr(model, name)[key] = parts.around(call, BRANCH)
        for patch in patches:
            patch.start()
        try:
            with parts.running():
                yield
        finally:
            for patch in reversed(patches):
                patch.stop()
            for name, calls in before.items():
                getattr(model, name).update(calls)


def _method(parts: Parts, call: Callable[..., Any]) -> Callable[..., Any]:
    def backward(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        with parts.part(BACKWARD):
            return call(self, *args, **kwargs)

    return backward
