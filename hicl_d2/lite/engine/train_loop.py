"""The training loop and the interface of its hooks."""

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from hicl_d2.lite.utils.events import EventStorage

__all__ = ["HookBase", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Base class of callbacks that a trainer calls at fixed points.

    They are called in the order of registration: before_train once; before_step and after_step around each iteration;
    after_train once, also when training fails. ``trainer``, a weak reference, is set on registration.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Run before the first iteration."""

    def after_train(self) -> None:
        """Run after the last iteration, or after an error."""

    def before_step(self) -> None:
        """Run before an iteration."""

    def after_step(self) -> None:
        """Run after an iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep of this hook; one that returns anything also has ``load_state_dict``."""
        return {}


class TrainerBase:
    """A loop over iterations that calls hooks; a subclass defines :meth:`run_step`.

    ``iter`` is the current iteration, counted from 0; in after_train it is ``max_iter`` if no iteration failed.
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

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def _call_hooks(self, point: str) -> None:
        for hook in self._hooks:
            getattr(hook, point)()

    def run_step(self) -> None:
        """Do one iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of the hooks by class name (of two hooks of a class, the first's)."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the iteration and the hooks' states; a state without a hook is dropped with a warning."""
        self.iter = state_dict["iteration"]
        by_name: dict[str, Any] = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in by_name:
                by_name[name].load_state_dict(state)
            else:
                logger.warning(f"Cannot find the hook '{name}', its state_dict is ignored.")
