"""The stream of samples depends on the seed alone: not on workers, processes, restarts or the state of the program."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import TrainingSampler
from hicl_d2.d2.utils import comm
from hicl_d2.data import build_test_loader, build_train_loader
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.data.loader import TrainLoader, TrainStream, _plain_errors, sample_randomness
from tests.support.process_group import in_process_group

RECORDS = [{"number": number} for number in range(7)]


def draw(record: dict[str, Any]) -> dict[str, Any]:
    """Map a record to its number and to draws from every random state that augmentations use."""
    draws = (np.random.rand(), random.random(), float(torch.rand(())))
    return {"number": record["number"], "draws": draws}


def _indices(size: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist()


class _Share:
    """A sampler that can be iterated again: every ``world_size``-th index of the global stream."""

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        self._slice = rank, None, world_size
        self._seed = seed

    def __iter__(self) -> Any:
        return itertools.islice(_indices(len(RECORDS), self._seed), *self._slice)


def loader(
    *, total: int = 4, rank: int = 0, world_size: int = 1, num_workers: int = 0, start: int = 0, seed: int = 9
) -> TrainLoader:
    """Return a loader of this process's share of the batches of ``total`` samples."""
    stream = TrainStream(
        RECORDS,
        draw,
        _Share(seed, rank, world_size),
        seed=seed,
        batch_size=total // world_size,
        rank=rank,
        world_size=world_size,
    )
    result = TrainLoader(stream, seed=seed, num_workers=num_workers)
    result.start_iteration = start
    return result


def take(batches: Any, count: int) -> list[list[dict[str, Any]]]:
    """Return the first ``count`` batches."""
    return list(itertools.islice(iter(batches), count))


REFERENCE = take(loader(), 9)


def test_reference_is_the_order_of_the_training_sampler() -> None:
    order = itertools.islice(iter(TrainingSampler(len(RECORDS), seed=9)), 36)
    assert [sample["number"] for batch in REFERENCE for sample in batch] == list(order)
    draws = [sample["draws"] for batch in REFERENCE for sample in batch]
    assert len(set(draws)) == len(draws), "every position has draws of its own"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_do_not_change_the_stream(num_workers: int) -> None:
    assert take(loader(num_workers=num_workers), 9) == REFERENCE


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_processes_share_each_step_of_the_stream(world_size: int, start: int) -> None:
    shares = [take(loader(rank=r, world_size=world_size, start=start), 4) for r in range(world_size)]
    for step, batches in enumerate(zip(*shares, strict=True), start=start):
        together = [sample for turn in zip(*batches, strict=True) for sample in turn]
        assert together == REFERENCE[step]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 6])
def test_resumed_stream_goes_on_where_it_stopped(num_workers: int, start: int) -> None:
    assert take(loader(num_workers=num_workers, start=start), 3) == REFERENCE[start : start + 3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_running_workers_take_a_new_start(num_workers: int) -> None:
    batches = loader(num_workers=num_workers)
    for start in (0, 4, 2):
        batches.start_iteration = start
        assert batches.start_iteration == start
        assert take(batches, 2) == REFERENCE[start : start + 2]


def test_another_seed_gives_another_stream() -> None:
    numbers = [[sample["number"] for sample in batch] for batch in take(loader(seed=10), 9)]
    assert numbers != [[sample["number"] for sample in batch] for batch in REFERENCE]


def _state() -> tuple[Any, ...]:
    return np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_random_state_of_the_program_alone(num_workers: int) -> None:
    before = _state()
    take(loader(num_workers=num_workers), 3)
    assert _state() == before


def test_random_state_of_the_program_does_not_reach_the_samples() -> None:
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    assert take(loader(), 9) == REFERENCE


def test_random_state_is_put_back_after_an_error() -> None:
    before = _state()
    with pytest.raises(ZeroDivisionError), sample_randomness(3, 4):
        _ = random.randint(1, 2) / 0
    assert _state() == before


def test_positions_and_seeds_do_not_share_draws() -> None:
    draws = []
    for seed, position in itertools.product(range(20), range(20)):
        with sample_randomness(seed, position):
            draws.append((np.random.rand(), random.random()))
    for column in zip(*draws, strict=True):
        assert len(set(column)) == 400


def _pixels(batches: Any, count: int) -> list[list[tuple[str, bytes, bytes]]]:
    return [
        [(s["image_id"], s["image"].numpy().tobytes(), s["sem_seg"].numpy().tobytes()) for s in batch]
        for batch in take(batches, count)
    ]


@pytest.mark.usefixtures("small_root")
def test_images_of_a_config_are_the_same_with_workers_and_after_a_resume(cfg: CfgNode) -> None:
    expected = _pixels(build_train_loader(cfg), 5)
    assert len({sample[1] for batch in expected for sample in batch}) > 12
    cfg.DATALOADER.NUM_WORKERS = 2
    resumed = build_train_loader(cfg)
    resumed.start_iteration = 2
    assert _pixels(resumed, 3) == expected[2:]


@pytest.mark.usefixtures("small_root")
def test_batches_have_the_size_of_the_crop(cfg: CfgNode) -> None:
    for batch in take(build_train_loader(cfg), 6):
        assert {tuple(sample["image"].shape) for sample in batch} == {(3, 32, 40)}
        assert {tuple(sample["sem_seg"].shape) for sample in batch} == {(32, 40)}


@pytest.mark.usefixtures("small_root")
def test_order_of_the_data_sets_names_does_not_matter(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("camvid_train", "camvid_val")
    expected = _pixels(build_train_loader(cfg), 4)
    cfg.DATASETS.TRAIN = ("camvid_val", "camvid_train")
    assert _pixels(build_train_loader(cfg), 4) == expected


@pytest.mark.usefixtures("small_root")
def test_negative_seed_is_drawn_and_known(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 1234)
    cfg.SEED = -1
    loader_of_negative = build_train_loader(cfg)
    assert loader_of_negative.seed == 1234
    expected = _pixels(loader_of_negative, 2)
    cfg.SEED = 1234
    assert _pixels(build_train_loader(cfg), 2) == expected


@in_process_group
def _share_of_process(rank: int, folder: str, cfg: CfgNode) -> None:
    train = [[sample["image_id"] for sample in batch] for batch in take(build_train_loader(cfg), 3)]
    checksums = [
        [int(sample["image"].sum()) for sample in batch] for batch in take(build_train_loader(cfg), 3)
    ]
    test = [sample["image_id"] for batch in build_test_loader(cfg, "camvid_test") for sample in batch]
    torch.save((train, checksums, test), Path(folder) / f"{rank}.pt")


def test_two_processes_see_what_one_sees(small_root: Path, cfg: CfgNode) -> None:
    mp.spawn(_share_of_process, args=(str(small_root), cfg), nprocs=2)
    shares = [torch.load(small_root / f"{rank}.pt") for rank in range(2)]
    alone = take(build_train_loader(cfg), 3)
    for step, batch in enumerate(alone):
        for rank, (train, checksums, _) in enumerate(shares):
            assert train[step] == [sample["image_id"] for sample in batch[rank::2]]
            assert checksums[step] == [int(sample["image"].sum()) for sample in batch[rank::2]]
    tested = [sample["image_id"] for batch in build_test_loader(cfg, "camvid_test") for sample in batch]
    assert shares[0][2] + shares[1][2] == tested


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.usefixtures("small_root")
def test_test_loader_gives_every_record_once_and_again(cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader_of_test = build_test_loader(cfg, "camvid_test")
    names = [record["image_id"] for record in load_records("camvid_test")]
    assert len(loader_of_test) == 5
    for _ in range(2):
        assert [batch[0]["image_id"] for batch in loader_of_test] == names
    assert all(len(batch) == 1 for batch in loader_of_test)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_ends_both_loaders_in_one_line(small_root: Path, cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = num_workers
    for split in ("train", "test"):
        path = small_root / "camvid" / "images" / split / f"{split}_03.png"
        path.write_bytes(path.read_bytes()[:200])
    for batches in (build_train_loader(cfg), build_test_loader(cfg, "camvid_test")):
        with pytest.raises(InputError) as caught:
            take(batches, 20)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{small_root}/camvid/images/")


@pytest.mark.usefixtures("small_root")
def test_batch_that_processes_cannot_share_is_refused(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(InputError, match=r"IMS_PER_BATCH is 4, which 3 processes cannot share evenly"):
        build_train_loader(cfg)


@pytest.mark.usefixtures("small_root")
def test_other_samplers_are_refused(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(InputError, match="RepeatFactorTrainingSampler"):
        build_train_loader(cfg)


def test_training_needs_a_data_set(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN names no data set"):
        build_train_loader(cfg)


class _Handing:
    """A loader with workers of which one ends while it hands over a batch."""

    num_workers = 1

    def __iter__(self) -> Iterator[Any]:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_worker_that_ends_while_it_hands_over_a_batch_is_a_lost_worker() -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker ended"):
        next(_plain_errors(_Handing()))
    _Handing.num_workers = 0
    with pytest.raises(ConnectionResetError):
        next(_plain_errors(_Handing()))
