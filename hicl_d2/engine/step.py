"""One training step: losses, gradients, update, in full or mixed precision."""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import atomic_open
from hicl_d2.d2.engine import SimpleTrainer
from hicl_d2.d2.utils import comm, seed_all_rng

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SHOWN_FILES = 4
GRADIENT = "the largest gradient"


class NonFiniteLossError(InputError, FloatingPointError):
    """Raised when a loss or a gradient is NaN or infinite; names the term, the iteration and the images."""


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
        accumulate: int = 1,
        nonfinite_limit: int = 0,
        nonfinite_folder: str | Path | None = None,
    ) -> None:
        """Make the trainer.

        Args:
            model: returns a loss or a dict of losses (0-d) for a batch.
            data_loader: gives lists of records.
            optimizer: updates the model.
            seed: of all that a step draws.
            precision: torch.float16 (with a gradient scaler), torch.bfloat16 (without), or None: full.
            accumulate: equal parts in which a batch is worked through; their mean loss is trained.
            nonfinite_limit: steps with a loss or gradient that is not finite that are skipped; the next raises.
            nonfinite_folder: where the batches of such steps are saved; None saves none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = GradScaler(self.device_type, enabled=precision is torch.float16)
        self.accumulate = accumulate
        self.nonfinite_limit = nonfinite_limit
        self.nonfinite_folder = nonfinite_folder
        self.skipped = 0

    def run_step(self) -> None:
        """Do one iteration. Raises NonFiniteLossError before the parameters are touched."""
        if not self.model.training:
            raise RuntimeError("the model is in eval mode in a training step")
        seed_all(self.seed, self.iter, comm.get_rank())
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # What a forward pass writes into norms and banks is taken back when its step is skipped.
        before = [buffer.clone() for buffer in self.model.buffers()] if self.nonfinite_limit else []
        self.optimizer.zero_grad()
        losses = self._losses_and_gradients(data)
        self.after_backward()
        figures = on_cpu({**losses, **self._largest_gradient()})
        if self._is_bad_anywhere(figures):
            self._skip_or_raise(figures, data, before)
            return
        figures.pop(GRADIENT, None)
        self._write_metrics(figures, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _losses_and_gradients(self, data: Any) -> dict[str, Tensor]:
        """Return the losses, averaged over the parts of the batch, after adding up their gradients."""
        parts = _parts(data, self.accumulate)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            is_last = number == len(parts)
            with nullcontext() if is_last else self._without_exchange():
                with self._autocast():
                    losses = self.model(part)
                    if isinstance(losses, Tensor):
                        losses = {"total_loss": losses}
                    total = sum(losses.values()) / len(parts)
                self.grad_scaler.scale(total).backward()
            for name, loss in losses.items():
                share = loss.detach().float() / len(parts)
                sums[name] = sums[name] + share if name in sums else share
        return sums

    def _without_exchange(self) -> AbstractContextManager[Any]:
        """Leave the gradients of a part on this process: those of the last part are exchanged with them."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.precision)

    def _largest_gradient(self) -> dict[str, Tensor]:
        """Return the largest gradient by magnitude; nothing where a scaler looks after what overflows."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.grad_scaler.is_enabled() or not gradients:
            return {}
        return {GRADIENT: get_total_norm(gradients, norm_type=math.inf)}

    def _is_bad_anywhere(self, figures: Mapping[str, Tensor]) -> bool:
        """Return whether a figure is not finite on any process; all of them get the same answer."""
        bad = float(bool(_bad(figures)))
        if comm.get_world_size() == 1:
            return bool(bad)
        flag = torch.tensor(bad, device=next(self.model.parameters()).device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _skip_or_raise(self, figures: Mapping[str, Tensor], data: Any, before: list[Tensor]) -> None:
        """Save the batch, then leave the model as it was before the step, or raise when it is enough."""
        own = _bad(figures)
        # The gradients of all processes are one sum: a bad one is the fault of those whose losses are bad, if any.
        has_bad_loss = bool(own) and GRADIENT not in own
        is_mine = has_bad_loss if any(comm.all_gather(has_bad_loss)) else bool(own)
        report = self._report(figures, data) + self._save_batch(figures, data) if is_mine else ""
        # What one process gathers from another may spoil its loss too: the cause is where most terms are bad.
        _, report = max(comm.all_gather((len(own) if is_mine else 0, report)), key=lambda found: found[0])
        if self.skipped >= self.nonfinite_limit:
            so_far = f"after {self.skipped} that were skipped; " if self.skipped else ""
            raise NonFiniteLossError(
                f"{report}; {so_far}lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and check these images "
                "and their labels"
            )
        self.skipped += 1
        logger.warning(f"{report}; the iteration is skipped ({self.skipped} of {self.nonfinite_limit})")
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)
        self.optimizer.zero_grad()

    def _report(self, figures: Mapping[str, Tensor], data: Any) -> str:
        terms = ", ".join(f"{name} is {value}" for name, value in _bad(figures).items())
        return f"{terms} at iteration {self.iter} (images: {', '.join(_files(data))})"

    def _save_batch(self, figures: Mapping[str, Tensor], data: Any) -> str:
        """Save what is needed to do the step again, and return where, in words."""
        if self.nonfinite_folder is None:
            return ""
        folder, rank = Path(self.nonfinite_folder), comm.get_rank()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"iteration_{self.iter:07d}_rank{rank}.pt"
        content = {
            "iteration": self.iter,
            "seed": self.seed,
            "rank": rank,
            "figures": {name: value.item() for name, value in figures.items()},
            "batch": data,
        }
        with atomic_open(path, "wb") as stream:
            torch.save(content, stream)
        return f", saved in {path}"

    def state_dict(self) -> dict[str, Any]:
        scaler = self.grad_scaler.state_dict()
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**super().state_dict(), **({"grad_scaler": scaler} if scaler else {}), **skipped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _parts(data: Any, count: int) -> list[Any]:
    """Return a batch in ``count`` parts of equal size, in order."""
    if count == 1:
        return [data]
    size, rest = divmod(len(data), count)
    if rest or not size:
        raise InputError(
            f"a process has {len(data)} images of a batch, which SOLVER.ACCUMULATE {count} cannot divide evenly"
        )
    return [data[first : first + size] for first in range(0, len(data), size)]


def _bad(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the figures that are not finite; a loss that is not explains the gradient."""
    bad = {name: value.item() for name, value in figures.items() if not math.isfinite(value.item())}
    return {name: value for name, value in bad.items() if name != GRADIENT or len(bad) == 1}


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
