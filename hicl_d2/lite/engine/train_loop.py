"""The training loop, the hooks it calls, and the two usual steps: full and mixed precision."""

import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something done at fixed points of a training; ``trainer``, a weak reference, is set on registration.

    The points are before_train; then per iteration before_step (keep it quick: timers start there), the step
    with after_backward inside, and after_step; in the end after_train, also when training fails.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Act before the first iteration."""

    def after_train(self) -> None:
        """Act after the last iteration, or after an error."""

    def before_step(self) -> None:
        """Act before an iteration."""

    def after_backward(self) -> None:
        """Act between the backward pass and the optimiser's step."""

    def after_step(self) -> None:
        """Act after an iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this hook (then load_state_dict must take it back)."""
        return {}


class TrainerBase:
    """A loop over iterations that calls hooks.

    ``iter`` is the iteration at work, counted from 0; it is ``max_iter`` in after_train if all went through.
    ``storage`` is the event storage of the training.
    """

    storage: EventStorage
    max_iter: int

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Add ``hooks`` after those already there; None is skipped."""
        for hook in hooks:
            if hook is not None:
                assert isinstance(hook, HookBase), hook
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` up to, not including, ``max_iter``."""
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        self._call_hooks("before_train")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def _call_hooks(self, point: str) -> None:
        for hook in self._hooks:
            getattr(hook, point)()

    def run_step(self) -> None:
        """Do one iteration; a subclass says how."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and, by class name, the state of the first hook of each class that has one."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the iteration and the hooks' states; a state without a hook is dropped with a warning."""
        self.iter = state_dict["iteration"]
        by_name: dict[str, Any] = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in by_name:
                by_name[name].load_state_dict(state)
            else:
                logger.warning(f"Cannot find the hook '{name}', its state_dict is ignored.")


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimiser: forward, backward, step.

    The model takes what the loader gives and returns a loss or a dict of losses (0-d); their sum is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """``gather_metric_period``: iterations between two gatherings of the losses from all ranks."""
        super().__init__()
        if async_write_metrics:
            raise ImportError(needs_detectron2("async_write_metrics"))
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._data_loader_iter_obj: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        """The loader's iterator, made when it is first used."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Go on with the loader that ``data_loader_builder()`` returns; the old one goes first."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """Do one iteration in the model's own precision."""
        self._step(contextlib.nullcontext())

    def _step(self, precision: contextlib.AbstractContextManager[Any]) -> None:
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with precision:
            losses = self.model(data)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._update()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _write_metrics(self, losses: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(losses, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Put the losses' means over ranks and the slowest loading time into the event storage of rank 0.

        Raises FloatingPointError there if the total is not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        everyone = comm.gather(({name: loss.item() for name, loss in loss_dict.items()}, data_time))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for _, seconds in everyone), cur_iter=cur_iter)
        means = {name: sum(losses[name] for losses, _ in everyone) / len(everyone) for name in loss_dict}
        total = sum(means.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\n{means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer in mixed precision: float16 with a gradient scaler, bfloat16 without; also on the CPU."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        rest = (gather_metric_period, zero_grad_before_forward, async_write_metrics)
        super().__init__(model, data_loader, optimizer, *rest)
        self.device_type = next(model.parameters()).device.type
        self.precision = precision
        self.grad_scaler = grad_scaler or GradScaler(self.device_type, enabled=precision is torch.float16)
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """Do one iteration under autocast."""
        self._step(torch.autocast(self.device_type, dtype=self.precision))

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
