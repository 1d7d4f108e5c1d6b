"""Event storage, its writers and random state are Detectron2's."""

import logging
import random
import re
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.runtimes import golden, load, needs_detectron2, plain


def _put(storage: Any, iteration: int) -> None:
    """Put one iteration's scalars: noisy losses, an unsmoothed learning rate, late and scoped ones."""
    storage.put_scalar("total_loss", 1.0 / (1 + iteration) + 0.1 * (iteration % 3))
    storage.put_scalars(loss_a=torch.tensor(0.5 * iteration), accuracy=iteration / 7)
    storage.put_scalar("lr", 0.01 * 0.9**iteration, smoothing_hint=False)
    if iteration >= 2:
        storage.put_scalars(time=0.25 + 0.01 * iteration, data_time=0.05)
    if iteration % 4 == 3:
        storage.put_scalar("[metric]/mIoU", 30.0 + iteration)
        storage.put_scalar("late", 3.0, cur_iter=iteration + 1)


def _storage_figures(events: Any) -> dict[str, Any]:
    with events.EventStorage(3) as storage:
        inside = events.get_event_storage() is storage
        for iteration in range(30):
            storage.iter = iteration
            _put(storage, iteration)
        storage.step()
        seen = {
            "iteration": storage.iter,
            "inside": inside,
            "latest": dict(storage.latest()),
            "smoothed": storage.latest_with_smoothing_hint(20),
            "smoothed over 5": storage.latest_with_smoothing_hint(5),
            "samples": {name: storage.count_samples(name, 20) for name in storage.histories()},
            "hints": storage.smoothing_hints(),
            "average": storage.history("total_loss").global_avg(),
        }
        with pytest.raises(AssertionError):
            storage.put_scalar("lr", 1.0)
        with pytest.raises(KeyError):
            storage.history("unknown")
        return seen


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(re.sub(r"max_mem: \d+M", "", record.getMessage()))


def _written(events: Any, folder: str) -> dict[str, Any]:
    """Run the writers as a trainer does, twice into the same folder, and return what they wrote."""
    printed = _Lines()
    for start, stop in [(0, 12), (12, 20)]:
        writers = [
            events.CommonMetricPrinter(20),
            events.TensorboardXWriter(folder),
        ]
        writers[0].logger.addHandler(printed)
        writers[0].logger.setLevel(logging.INFO)
        with events.EventStorage(start) as storage:
            for iteration in range(start, stop):
                storage.iter = iteration
                _put(storage, iteration)
                if (iteration + 1) % 5 == 0:
                    for writer in writers:
                        writer.write()
            storage.iter = stop
            for writer in writers:
                writer.write()
                writer.close()
        writers[0].logger.removeHandler(printed)
    return {
        "console": printed.lines,
        "tensorboard": _tensorboard(folder),
    }


def _tensorboard(folder: str) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return {
        tag: sorted([event.step, float(f"{event.value:.6g}")] for event in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def _random_state(env: Any) -> list[Any]:
    env.seed_all_rng(7)
    return [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]


def _alone(comm: Any) -> dict[str, Any]:
    """Return what communication gives to a single process."""
    np.random.seed(0)
    return {
        "world": [comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()],
        "main": comm.is_main_process(),
        "gathered": [comm.all_gather("a"), comm.gather("b"), comm.synchronize()],
        "seed": int(comm.shared_random_seed()),
    }


def figures(runtime: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "storage": _storage_figures(load(runtime, "utils.events")),
            "writers": _written(load(runtime, "utils.events"), folder),
            "random state": _random_state(load(runtime, "utils.env")),
            "alone": _alone(load(runtime, "utils.comm")),
        }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("utils")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("utils")


def test_the_recorded_lines_hold_the_iteration_and_the_median_of_20() -> None:
    recorded = golden("utils")
    lines = recorded["writers"]["console"]
    assert [int(line.split("iter: ")[1].split()[0]) for line in lines] == [4, 9, 12, 14, 19]
    newest = [1.0 / (1 + i) + 0.1 * (i % 3) for i in range(10, 30)]
    assert recorded["storage"]["smoothed"]["total_loss"] == [pytest.approx(np.median(newest)), 29]
