"""One training step: losses, gradients, update, in full or mixed precision."""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from hicl_d2.command.errors import InputError, counted
from hicl_d2.d2.utils import comm, get_event_storage, seed_all_rng
from hicl_d2.engine.checkpoint import save_whole
from hicl_d2.engine.precision import keep_depthwise_in_float32
from hicl_d2.modeling.memory_format import like

logger = logging.getLogger(__name__)

SHOWN_FILES = 4
GRADIENT = "the largest gradient"
# Of an optimiser's groups: how it computes, which is no part of what it has learned.
KERNELS = ("foreach", "fused")


class NonFiniteLossError(InputError, FloatingPointError):
    """Raised when a loss or a gradient is NaN or infinite; names the term, the iteration and the images."""


class StepTrainer:
    """One model, one loader, one optimizer, and the step that trains them; ``iter`` is the iteration of the next step.

    The random state is set at the start of every step from seed, iteration and rank. A resumed run therefore draws
    the same numbers as one that was not interrupted, and a model draws the same numbers with and without a branch that
    draws some of its own.
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
        """Put the model into training mode.

        Args:
            model: returns a loss or a dict of losses (0-d) for a batch.
            data_loader: yields lists of records; its iterator is made at the first step.
            optimizer: of the model's parameters.
            seed: of the random state of every step.
            precision: of autocast, on any device: torch.float16 (with a gradient scaler), torch.bfloat16, or None for
                full precision.
            accumulate: number of equal parts in which a batch is processed; their mean loss is trained.
            nonfinite_limit: number of steps that are skipped because a loss or a gradient is NaN or infinite; the
                next such step raises.
            nonfinite_folder: where the batches of such steps are saved; None saves none.
        """
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.iter = 0
        self._batches: Iterator[Any] | None = None
        self.seed = seed
        self.precision = precision
        self._parameters = list(model.parameters())
        self.device_type = next(model.parameters()).device.type
        if precision is torch.bfloat16 and self.device_type == "cpu":
            keep_depthwise_in_float32(model)
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
        if self._batches is None:
            self._batches = iter(self.data_loader)
        data = next(self._batches)
        data_time = time.perf_counter() - start
        # Snapshot the buffers (norm statistics, banks) so that a skipped step can restore them.
        before = [buffer.clone() for buffer in self.model.buffers()] if self.nonfinite_limit else []
        self.optimizer.zero_grad()
        losses = self._losses_and_gradients(data)
        # The one place in which the host waits for the device.
        figures = as_numbers({**losses, **self._norm_of_gradients()})
        if not math.isfinite(figures.get(GRADIENT, 0)):
            figures |= self._largest_gradient()
        if self._is_bad_anywhere(figures):
            self._skip_or_raise(figures, data, before)
            return
        figures.pop(GRADIENT, None)
        self._log(figures, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _losses_and_gradients(self, data: Any) -> dict[str, Tensor]:
        """Run forward and backward on each part of the batch, and return the losses averaged over the parts."""
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
        """Accumulate gradients without all-reduce; the last part's backward pass reduces the sum."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.precision)

    def _norm_of_gradients(self) -> dict[str, Tensor]:
        """Return the norm of all gradients together; nothing in float16, where the scaler handles overflow.

        It is finite only if all gradients are, and takes an eighth of the time of the largest one on a CPU.
        """
        gradients = self._gradients()
        return {GRADIENT: get_total_norm(gradients)} if gradients else {}

    def _largest_gradient(self) -> dict[str, float]:
        """Return the largest gradient by magnitude, which is finite where only the square of one is not."""
        return as_numbers({GRADIENT: get_total_norm(self._gradients(), norm_type=math.inf)})

    def _gradients(self) -> list[Tensor]:
        if self.grad_scaler.is_enabled():
            return []
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _is_bad_anywhere(self, figures: Mapping[str, float]) -> bool:
        """Return, the same on every process, whether a figure is NaN or infinite on any of them."""
        bad = bool(_bad(figures))
        if comm.get_world_size() == 1:
            return bad
        flag = torch.tensor(float(bad), device=next(self.model.parameters()).device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _skip_or_raise(self, figures: Mapping[str, float], data: Any, before: list[Tensor]) -> None:
        """Save the batch; then restore the buffers to ``before``, or raise if the limit is reached."""
        own = _bad(figures)
        # Gradients are summed over processes: a bad one comes from the processes whose losses are bad, if there are any.
        has_bad_loss = bool(own) and GRADIENT not in own
        is_mine = has_bad_loss if any(comm.all_gather(has_bad_loss)) else bool(own)
        report = self._report(figures, data) + self._save_batch(figures, data) if is_mine else ""
        # The contrast gathers embeddings, so one process's NaN can spread: report the process with the most bad terms.
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

    def _report(self, figures: Mapping[str, float], data: Any) -> str:
        terms = ", ".join(f"{name} is {value}" for name, value in _bad(figures).items())
        return f"{terms} at iteration {self.iter} (images: {', '.join(_files(data))})"

    def _save_batch(self, figures: Mapping[str, float], data: Any) -> str:
        """Save what repeats the step, and return the end of the report that names the file."""
        if self.nonfinite_folder is None:
            return ""
        folder, rank = Path(self.nonfinite_folder), comm.get_rank()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"iteration_{self.iter:07d}_rank{rank}.pt"
        content = {
            "iteration": self.iter,
            "seed": self.seed,
            "rank": rank,
            "figures": dict(figures),
            "batch": data,
        }
        save_whole(content, path)
        return f", saved in {path}"

    def _log(self, losses: Mapping[str, float], data_time: float) -> None:
        """Put losses averaged over processes, their total and the longest data time into the main process's storage."""
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=self.iter)
        everyone = comm.gather((dict(losses), data_time))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for _, seconds in everyone), cur_iter=self.iter)
        means = {name: sum(own[name] for own, _ in everyone) / len(everyone) for name in losses}
        storage.put_scalar("total_loss", sum(means.values()), cur_iter=self.iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=self.iter, **means)

    def state_dict(self) -> dict[str, Any]:
        """Return iteration and optimizer as Detectron2's SimpleTrainer does, and the gradient scaler if there is one."""
        state = {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}
        scaler = self.grad_scaler.state_dict()
        return (
            state
            | ({"grad_scaler": scaler} if scaler else {})
            | ({"skipped": self.skipped} if self.skipped else {})
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; a state in another precision is accepted."""
        self.iter = state_dict["iteration"]
        self.optimizer.load_state_dict(_with_kernels_of(self.optimizer, state_dict["optimizer"]))
        for parameter, state in self.optimizer.state.items():
            state.update({name: like(parameter, value) for name, value in state.items()})
        self.skipped = state_dict.get("skipped", 0)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _with_kernels_of(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser, to be loaded into one that may compute otherwise: on another device, by version."""
    own = {name: optimizer.defaults[name] for name in KERNELS if name in optimizer.defaults}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}


def _parts(data: Any, count: int) -> list[Any]:
    """Split a batch into ``count`` parts of equal size, in order. Raises InputError if they would not be equal."""
    if count == 1:
        return [data]
    size, rest = divmod(len(data), count)
    if rest or not size:
        raise InputError(
            f"a process has {counted(len(data), 'image')} of a batch, which SOLVER.ACCUMULATE {count} cannot divide evenly"
        )
    return [data[first : first + size] for first in range(0, len(data), size)]


def _bad(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are NaN or infinite; the gradient only if no loss is."""
    bad = {name: value for name, value in figures.items() if not math.isfinite(value)}
    return {name: value for name, value in bad.items() if name != GRADIENT or len(bad) == 1}


def as_numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the losses (0-d) as numbers, in float32 and in one transfer."""
    if not losses:
        return {}
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _files(data: Any) -> list[str]:
    entries = data if isinstance(data, list) else []
    names = [str(entry.get("file_name", "?")) for entry in entries if isinstance(entry, Mapping)]
    rest = len(names) - SHOWN_FILES
    return names[:SHOWN_FILES] + ([f"{rest} more"] if rest > 0 else []) or ["unknown"]


def seed_all(seed: int, iteration: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices) for one iteration of one process."""
    digest = hashlib.blake2b(f"{seed}/{iteration}/{rank}".encode(), digest_size=4).digest()
    seed_all_rng(int.from_bytes(digest))
