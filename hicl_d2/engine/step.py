"""One training step: losses, gradients, update, in full or mixed precision."""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from hicl_d2.d2.engine import SimpleTrainer
from hicl_d2.d2.utils import comm, seed_all_rng
from hicl_d2.errors import InputError

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SHOWN_FILES = 4


class NonFiniteLossError(InputError, FloatingPointError):
    """Raised when a loss is NaN or infinite; names the term, the iteration and the images."""


class StepTrainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with mixed precision in float16 or bfloat16 on any device.

    All that is drawn at random in a step (dropout, say) depends on seed, iteration and rank alone, so a
    resumed run draws what the undisturbed one would have drawn, and so does a model with a branch that draws
    numbers of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        """``precision``: torch.float16 (with a gradient scaler), torch.bfloat16 (without), or None: full."""
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = GradScaler(self.device_type, enabled=precision is torch.float16)

    def run_step(self) -> None:
        """Do one iteration. Raises NonFiniteLossError before the parameters are touched."""
        if not self.model.training:
            raise RuntimeError("the model is in eval mode in a training step")
        seed_all(self.seed, self.iter, comm.get_rank())
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with self._autocast():
            losses = self.model(data)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        losses = on_cpu(losses)
        self._check_finite(losses, data)
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.precision)

    def _check_finite(self, losses: Mapping[str, Tensor], data: Any) -> None:
        bad = {name: value.item() for name, value in losses.items() if not math.isfinite(value.item())}
        if not bad:
            return
        terms = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise NonFiniteLossError(
            f"{terms} at iteration {self.iter} (images: {', '.join(_files(data))}); lower SOLVER.BASE_LR or "
            "lengthen SOLVER.WARMUP_ITERS, and check these images and their labels"
        )

    def state_dict(self) -> dict[str, Any]:
        scaler = self.grad_scaler.state_dict()
        return {**super().state_dict(), **({"grad_scaler": scaler} if scaler else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def on_cpu(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses (0-d) detached, float32, on the CPU, with one transfer for all of them."""
    if not losses:
        return {}
    values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
    return dict(zip(losses, values.unbind(), strict=True))


def _files(data: Any) -> list[str]:
    entries = data if isinstance(data, list) else []
    names = [str(entry.get("file_name", "?")) for entry in entries if isinstance(entry, Mapping)]
    rest = len(names) - SHOWN_FILES
    return names[:SHOWN_FILES] + ([f"{rest} more"] if rest > 0 else []) or ["unknown"]


def seed_all(seed: int, iteration: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices) for one iteration of one process."""
    digest = hashlib.blake2b(f"{seed}/{iteration}/{rank}".encode(), digest_size=4).digest()
    seed_all_rng(int.from_bytes(digest))
