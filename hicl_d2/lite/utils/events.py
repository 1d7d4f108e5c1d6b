"""Scalars of a run over its iterations, and the writers of the log line and of TensorBoard."""

import datetime
import functools
import logging
import time
from collections import defaultdict
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

__all__ = ["CommonMetricPrinter", "EventStorage", "EventWriter", "TensorboardXWriter", "get_event_storage"]

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the storage of the innermost ``with EventStorage(...)``; AssertionError outside of one."""
    if not _storages:  # no assert, which python -O leaves out: callers go by the error
        raise AssertionError(
            "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
        )
    return _storages[-1]


class EventStorage:
    """The history of every scalar of a run; as a context manager, the current storage."""

    def __init__(self, start_iter: int = 0) -> None:
        self._iteration = start_iter
        self._histories: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._hints: dict[str, bool] = {}

    def put_scalar(
        self, name: str, value: float | Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a value of the scalar ``name`` at the current iteration, or at ``cur_iter``.

        ``smoothing_hint`` says whether writers show a median over recent values; AssertionError if it differs
        from the one before.
        """
        hint = self._hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"
        iteration = self._iteration if cur_iter is None else cur_iter
        self._latest[name] = (float(value), iteration)
        self._histories[name].update(float(value), iteration)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float | Tensor
    ) -> None:
        """Add several scalars, as :meth:`put_scalar`, given as keyword arguments."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        """Return all values of a scalar; KeyError if it was never put."""
        if name not in self._histories:
            raise KeyError(f"No history metric available for {name}!")
        return self._histories[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return the histories of all scalars by name."""
        return self._histories

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the newest value of every scalar and the iteration that it belongs to."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return :meth:`latest`, smoothed scalars by their median of the last ``window_size`` iterations."""
        return {
            name: (self.recent_median(name, window_size) if self._hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def recent_median(self, name: str, window_size: int = 20) -> float:
        """Return the median of a scalar's values of the last ``window_size`` iterations."""
        return float(self._histories[name].median(self.count_samples(name, window_size)))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values a scalar got in the ``window_size`` iterations up to its newest."""
        values = self._histories[name].values()
        oldest = values[-1][1] - window_size
        count = 0
        while count < len(values) and values[-1 - count][1] > oldest:
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Return for every scalar whether its values ask for smoothing."""
        return self._hints

    def step(self) -> None:
        """Advance to the next iteration."""
        self._iteration += 1

    @property
    def iter(self) -> int:
        """Return the current iteration, counted from 0."""
        return self._iteration

    @iter.setter
    def iter(self, value: int) -> None:
        self._iteration = int(value)

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        last = _storages.pop()
        assert last is self


class EventWriter:
    """Base class of writers, which read the current event storage."""

    def write(self) -> None:
        """Write what was added since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files."""


class TensorboardXWriter(EventWriter):
    """Write scalars for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """``kwargs`` go to ``torch.utils.tensorboard.SummaryWriter``, which is made when first written to."""
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._window_size = window_size
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        """Write the scalars of the iterations after the last one written."""
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest

    def close(self) -> None:
        """Close the event file, if anything was written."""
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log one line of progress: time left, iteration, losses, metrics, times, learning rate, memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """``max_iter``: length of the run, for the time left. ``window_size``: iterations of the medians."""
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and clock

    def write(self) -> None:
        """Log the line; nothing after the last iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        eta = self._time_left(storage)
        latest = storage.latest()
        rate = f"{latest['lr'][0]:.5g}" if "lr" in latest else "N/A"
        has_gpu = torch.cuda.is_available()
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if has_gpu else ""
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  {self._medians(storage, 'loss')}  "
            f"{self._medians(storage, '[metric]')}  {self._times(storage)} lr: {rate}  {memory}"
        )

    def _medians(self, storage: EventStorage, word: str) -> str:
        names = [name for name in storage.histories() if word in name]
        return "  ".join(f"{name}: {storage.recent_median(name, self._window_size):.4g}" for name in names)

    def _times(self, storage: EventStorage) -> str:
        figures: dict[str, float] = {}
        if "time" in storage.histories():
            history = storage.history("time")
            figures |= {"time": history.global_avg(), "last_time": history.latest()}
        if "data_time" in storage.histories():
            history = storage.history("data_time")
            window = storage.count_samples("data_time", self._window_size)
            figures |= {"data_time": history.avg(window), "last_data_time": history.latest()}
        return "".join(f"{name}: {seconds:.4f}  " for name, seconds in figures.items())

    def _time_left(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        is_timed = "time" in storage.histories()
        seconds = (
            storage.history("time").median(1000) if is_timed else self._seconds_since_last_write(storage)
        )
        if seconds is None:
            return None
        left = float(seconds * (self._max_iter - storage.iter - 1))
        if is_timed:
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(left)))

    def _seconds_since_last_write(self, storage: EventStorage) -> float | None:
        """Return the seconds per iteration since the line before; the first iterations have no timer yet."""
        before, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if before is None or before[0] == storage.iter:
            return None
        return (self._last_write[1] - before[1]) / (storage.iter - before[0])
