"""Event storage, its writers, logging and random state are Detectron2's."""

import json
import logging
import random
import re
import tempfile
from pathlib import Path
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
        with storage.name_scope("scope/"):
            storage.put_scalar("inner", iteration)


def _storage_figures(events: Any) -> dict[str, Any]:
    with events.EventStorage(3) as storage:
        inside = [events.has_event_storage(), events.get_event_storage() is storage]
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
    """Run three writers as a trainer does, twice into the same file, and return what they wrote."""
    printed = _Lines()
    for start, stop in [(0, 12), (12, 20)]:
        writers = [
            events.CommonMetricPrinter(20),
            events.JSONWriter(f"{folder}/metrics.json"),
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
        "metrics.json": Path(f"{folder}/metrics.json").read_text().splitlines(),
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


def _logged(logger: Any, folder: str) -> dict[str, Any]:
    seen = _Lines()
    target = logging.getLogger("tests.repeats")
    target.addHandler(seen)
    for count in range(5):
        logger.log_first_n(logging.WARNING, f"first two {count}", n=2, name="tests.repeats")
        logger.log_first_n(logging.WARNING, "by message", name="tests.repeats", key="message")
        logger.log_first_n(logging.WARNING, "by message", name="tests.repeats", key=("caller", "message"))
        logger.log_every_n(logging.WARNING, f"every second {count}", n=2, name="tests.repeats")
        logger.log_every_n_seconds(logging.WARNING, f"seconds {count}", n=1000, name="tests.repeats")
    target.removeHandler(seen)
    for rank in (0, 1):
        name = f"tests.rank{rank}.{logger.__name__}"
        made = logger.setup_logger(f"{folder}/logs", rank, name=name, configure_stdout=False)
        again = logger.setup_logger(f"{folder}/logs", rank, name=name, configure_stdout=False)
        assert made is again
        made.warning("from rank %d", rank)
        made.debug("detail")
    return {
        "repeats": seen.lines,
        "files": {file.name: _lines(file) for file in Path(folder, "logs").iterdir()},
    }


def _lines(file: Path) -> list[str]:
    """Return a log's lines with the date and the runtime's name blotted out."""
    text = re.sub(r"\d\d/\d\d \d\d:\d\d:\d\d", "<date>", file.read_text())
    return re.sub(r"(rank\d)\.\S+", r"\1", text).splitlines()


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
        "reduced": {name: value.item() for name, value in comm.reduce_dict({"a": torch.tensor(2.0)}).items()},
    }


def figures(runtime: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "storage": _storage_figures(load(runtime, "utils.events")),
            "writers": _written(load(runtime, "utils.events"), folder),
            "logger": _logged(load(runtime, "utils.logger"), folder),
            "random state": _random_state(load(runtime, "utils.env")),
            "alone": _alone(load(runtime, "utils.comm")),
        }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("utils")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("utils")


def test_the_recorded_lines_hold_the_iteration_and_the_median_of_20() -> None:
    lines = [json.loads(line) for line in golden("utils")["writers"]["metrics.json"]]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [4, 9, 11, 14, 19]
    losses = [1.0 / (1 + i) + 0.1 * (i % 3) for i in range(10)]
    tenth = next(line for line in lines if line["iteration"] == 9)
    assert tenth["total_loss"] == pytest.approx(np.median(losses))
