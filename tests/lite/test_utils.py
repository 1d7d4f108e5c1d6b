"""The built-in runtime's utilities, alone and between two processes."""

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from hicl_d2.lite.utils import collect_env, comm, env, events, file_io, registry
from hicl_d2.lite.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter
from tests.support.process_group import in_process_group

# --------------------------------------------------------------------------------------------------
# Communication


@in_process_group
def _process(rank: int, folder: str) -> None:
    """Run every collective call in one of two processes and write down what it gave."""
    np.random.seed(rank)
    drawn = [comm.shared_random_seed() for _ in range(2)]
    with pytest.raises(AssertionError, match="create_local_process_group"):
        comm.get_local_rank()
    comm.create_local_process_group(1)
    machines = [comm.get_local_rank(), comm.get_local_size()]
    comm.synchronize()
    seen = {
        "world": [comm.get_world_size(), comm.get_rank(), comm.is_main_process()],
        "machines": machines,
        "seeds": drawn,
        "all": comm.all_gather({"rank": rank}),
        "to 0": comm.gather(f"from {rank}"),
        "to 1": comm.gather(rank, dst=1),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))


def test_two_processes_exchange_objects(tmp_path: Path) -> None:
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    np.random.seed(0)
    assert first["seeds"] == second["seeds"] == [int(np.random.randint(2**31)) for _ in range(2)]
    assert (first["world"], second["world"]) == ([2, 0, True], [2, 1, False])
    assert first["machines"] == second["machines"] == [0, 1]
    assert first["all"] == second["all"] == [{"rank": 0}, {"rank": 1}]
    assert (first["to 0"], second["to 0"]) == (["from 0", "from 1"], [])
    assert (first["to 1"], second["to 1"]) == ([], [0, 1])


# --------------------------------------------------------------------------------------------------
# Events


def test_the_innermost_storage_is_the_current_one() -> None:
    with pytest.raises(AssertionError, match="with EventStorage"):
        events.get_event_storage()
    with EventStorage(1) as outer:
        with EventStorage(2) as inner:
            assert events.get_event_storage() is inner
        assert events.get_event_storage() is outer
    with pytest.raises(AssertionError, match="with EventStorage"):
        events.get_event_storage()


def test_a_scalar_that_changes_its_smoothing_is_refused_and_not_kept() -> None:
    with EventStorage() as storage:
        storage.put_scalar("a", 1.0)
        with pytest.raises(AssertionError, match="a was put with a different smoothing_hint"):
            storage.put_scalar("a", 2.0, smoothing_hint=False)
        assert storage.history("a").latest() == 1.0


def test_samples_are_counted_by_iterations_not_by_values() -> None:
    with EventStorage() as storage:
        for iteration in (0, 10, 25, 29, 30):
            storage.put_scalar("a", float(iteration), cur_iter=iteration)
        assert [storage.count_samples("a", window) for window in (1, 2, 6, 20, 21, 100)] == [1, 2, 3, 3, 4, 5]
        assert storage.latest_with_smoothing_hint(6)["a"] == (29.0, 30)


def test_tensorboard_makes_no_file_before_there_is_something_to_write(tmp_path: Path) -> None:
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage():
        writer.write()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_progress_without_timer_or_end_has_no_time_left(caplog: pytest.LogCaptureFixture) -> None:
    endless, timed = CommonMetricPrinter(), CommonMetricPrinter(100)
    with caplog.at_level(logging.INFO, "hicl_d2.lite.utils.events"), EventStorage() as storage:
        storage.put_scalar("total_loss", 2.0)
        endless.write()
        timed.write()
        timed.write()  # twice in one iteration: no division by zero
        storage.iter = 10
        timed.write()  # ten iterations after the line before
    shown = [record.getMessage() for record in caplog.records]
    assert [line.split("max_mem")[0] for line in shown[:3]] == [" iter: 0  total_loss: 2     lr: N/A  "] * 3
    assert shown[3].startswith(" eta: 0:00:0")


def test_a_writer_says_how_it_writes() -> None:
    with pytest.raises(NotImplementedError):
        events.EventWriter().write()


# --------------------------------------------------------------------------------------------------
# Random state, environment, files, registries


def test_a_seed_repeats_every_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), random.random()]

    env.seed_all_rng(11)
    first = draw()
    other = draw()
    env.seed_all_rng(11)
    assert draw() == first != other
    assert os.environ["PYTHONHASHSEED"] == "11"


def test_a_drawn_seed_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with caplog.at_level(logging.INFO):
        env.seed_all_rng()
    assert caplog.records[0].getMessage() == f"Using a generated random seed {os.environ['PYTHONHASHSEED']}"
    assert torch.initial_seed() == int(os.environ["PYTHONHASHSEED"])


def test_the_environment_names_versions_and_devices() -> None:
    described = collect_env.collect_env_info()
    assert torch.__version__ in described
    assert np.__version__ in described
    assert "Detectron2 is not in use" in described


def test_the_model_zoo_s_address_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    handler = file_io.HTTPURLHandler
    monkeypatch.setattr(
        handler, "_get_local_path", lambda self, path, *args, **kwargs: asked.append(path) or "here"
    )
    assert file_io.PathManager.get_local_path("detectron2://DeepLab/R-52.pkl") == "here"
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/DeepLab/R-52.pkl"]


def test_a_registry_knows_its_names() -> None:
    known = registry.Registry("THING")

    @known.register()
    class Thing:
        pass

    assert known.get("Thing") is Thing
    with pytest.raises(KeyError, match=r"Other.*THING"):
        known.get("Other")
