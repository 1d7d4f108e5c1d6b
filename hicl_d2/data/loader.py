"""Loaders whose stream of images and augmentations depends on the seed alone.

A sample is known by its position in the global stream. Which record stands there follows from Detectron2's
TrainingSampler and the seed; what its augmentations draw follows from the seed and the position. So a
baseline and its variant see the same images, whatever the model, the number of workers and processes, and a
resumed run goes on where it stopped.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from hicl_d2.command.errors import InputError, one_line
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import InferenceSampler, TrainingSampler
from hicl_d2.d2.utils import comm
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.instances import instance_mapper, instance_records, uses_instances
from hicl_d2.data.mapper import SemanticMapper, build_train_mapper
from hicl_d2.data.packed import PackedRecords
from hicl_d2.data.parallel import end_with_parent

Mapper = Callable[[dict[str, Any]], dict[str, Any]]
Batch = list[dict[str, Any]]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def sample_randomness(seed: int, position: int) -> Iterator[None]:
    """Seed numpy, Python and torch (on the CPU) for one sample, and put their states back afterwards."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    words = np.random.SeedSequence((seed, position)).generate_state(6)
    np.random.seed(words[:4])
    random.seed(int(words[4]))
    torch.default_generator.manual_seed(int(words[5]))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


class TrainStream(IterableDataset[Batch]):
    """This process's share of the global stream, batch by batch, each worker making every n-th of them.

    Process ``rank`` of ``world_size`` takes the positions rank, rank + world_size, ... : the batches of one
    step hold, over all processes, the next ``batch_size`` x ``world_size`` positions. ``sampler`` gives the
    records at this process's positions, from the first on.
    """

    def __init__(
        self,
        records: Records,
        mapper: Mapper,
        sampler: Iterable[int],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._records = PackedRecords(records)
        self._mapper = mapper
        self._sampler = sampler
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        # In shared memory, so that it reaches workers that are running already.
        self._start = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def num_images(self) -> int:
        """How many records there are."""
        return len(self._records)

    @property
    def start_iteration(self) -> int:
        """The step that iteration begins with."""
        return int(self._start)

    @start_iteration.setter
    def start_iteration(self, iteration: int) -> None:
        self._start.fill_(iteration)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        start, batch = self.start_iteration, []
        for turn, index in enumerate(self._sampler):
            step = turn // self._batch_size
            if step < start or (step - start) % count != number:
                continue
            batch.append(self._sample(index, self._rank + self._world_size * turn))
            if len(batch) == self._batch_size:
                yield batch
                batch = []

    def _sample(self, index: int, position: int) -> dict[str, Any]:
        with sample_randomness(self._seed, position):
            return self._mapper(self._records[index])


class TrainLoader:
    """An endless iterable over lists of mapped records; to resume, set ``start_iteration`` first."""

    def __init__(
        self, stream: TrainStream, *, seed: int, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.seed = seed
        self._stream = stream
        self._loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=end_with_parent,
            # Without a generator of its own the loader would draw from torch's global state.
            generator=torch.Generator().manual_seed(seed),
        )

    @property
    def num_images(self) -> int:
        """How many images the training data have."""
        return self._stream.num_images

    @property
    def start_iteration(self) -> int:
        """The step that the next iteration begins with."""
        return self._stream.start_iteration

    @start_iteration.setter
    def start_iteration(self, iteration: int) -> None:
        self._stream.start_iteration = iteration

    def __iter__(self) -> Iterator[Batch]:
        return _plain_errors(self._loader)


class TestLoader:
    """Every mapped record of this process's share once, in lists of one, with a length."""

    __test__ = False  # it is no test, whatever pytest makes of its name

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return _plain_errors(self._loader)


class _MappedRecords(Dataset[dict[str, Any]]):
    def __init__(self, records: Records, mapper: Mapper) -> None:
        self._records = PackedRecords(records)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._mapper(self._records[index])


def build_train_loader(cfg: CfgNode, mapper: Mapper | None = None) -> TrainLoader:
    """Return the training stream of ``cfg`` for this process.

    The records of all DATASETS.TRAIN are put in the order of their file names first: the order in which a
    file system lists them must not matter. SEED below 0 stands for a random seed that the processes agree on
    (``seed`` of the loader).
    """
    records = [record for name in cfg.DATASETS.TRAIN for record in load_records(name)]
    is_of_instances = uses_instances(cfg, records)
    if is_of_instances:
        records = instance_records(cfg)
    records.sort(key=lambda record: str(record["file_name"]))
    world_size, rank = comm.get_world_size(), comm.get_rank()
    batch_size = _batch_size(cfg, world_size)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    stream = TrainStream(
        records,
        mapper or (instance_mapper(cfg, True) if is_of_instances else build_train_mapper(cfg)),
        _training_sampler(cfg, len(records), seed),
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
    logger.info("Training on %d images, seed %d, %d a step on each process", len(records), seed, batch_size)
    workers = cfg.DATALOADER.NUM_WORKERS
    return TrainLoader(stream, seed=seed, num_workers=workers, pin_memory=_pins_memory(cfg))


def _batch_size(cfg: CfgNode, world_size: int) -> int:
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if rest or batch_size < 1:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes cannot share "
            "evenly; make it a multiple of their number"
        )
    return batch_size


def check_sampler(cfg: CfgNode) -> None:
    """Raise InputError if DATALOADER.SAMPLER_TRAIN is not the one that streams are defined for."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN}, but streams that can be paired and "
            "resumed are defined for TrainingSampler"
        )


def _training_sampler(cfg: CfgNode, size: int, seed: int) -> Iterable[int]:
    check_sampler(cfg)
    if size == 0:
        raise InputError("DATASETS.TRAIN names no data set; give at least one")
    return TrainingSampler(size, seed=seed)


def build_test_loader(cfg: CfgNode, name: str, mapper: Mapper | None = None) -> TestLoader:
    """Return the records of the data set ``name`` one by one, this process's share of them."""
    records = load_records(name)
    if mapper is None:
        mapper = instance_mapper(cfg, False) if uses_instances(cfg, records) else SemanticMapper(cfg, False)
    workers = cfg.DATALOADER.NUM_WORKERS
    return TestLoader(
        DataLoader(
            _MappedRecords(records, mapper),
            batch_size=1,
            sampler=InferenceSampler(len(records)),
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=_pins_memory(cfg),
            persistent_workers=workers > 0,
            worker_init_fn=end_with_parent,
            generator=torch.Generator(),
        )
    )


def _pins_memory(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def _as_it_is(batch: Any) -> Any:
    return batch


def _plain_errors(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Iterate, and take the traceback that a worker wraps around an InputError off again.

    A worker that is lost is a RuntimeError of torch's, also when it was handing over a batch.
    """
    try:
        yield from loader
    except InputError as error:
        raise InputError(one_line(error)) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not getattr(loader, "num_workers", 0):
            raise
        raise RuntimeError("a DataLoader worker ended while it handed over a batch") from error
