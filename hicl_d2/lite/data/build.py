"""Loaders for training and testing, from a config or from their parts."""

import copy
import itertools
import operator
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.config import CfgNode, configurable
from hicl_d2.lite.data.catalog import DatasetCatalog, Records
from hicl_d2.lite.data.dataset_mapper import DatasetMapper
from hicl_d2.lite.data.samplers import InferenceSampler, TrainingSampler
from hicl_d2.lite.utils.comm import get_world_size
from hicl_d2.lite.utils.env import seed_all_rng

Mapper = Callable[[dict[str, Any]], Any]
Collate = Callable[[list[Any]], Any]


class DatasetFromList(Dataset[Any]):
    """A list as a data set.

    With ``serialize`` the elements are kept as the bytes of one tensor, which worker processes share instead
    of copying, and each access gives a fresh object. Without it, ``copy`` says whether an access gives a deep
    copy.
    """

    def __init__(self, lst: Sequence[Any], copy: bool = True, serialize: bool = True) -> None:
        self._copy = copy
        self._elements = None if serialize else lst
        if serialize:
            pickled = [np.frombuffer(pickle.dumps(element, protocol=-1), dtype=np.uint8) for element in lst]
            self._ends = np.cumsum([0] + [len(data) for data in pickled])
            self._bytes = torch.from_numpy(np.concatenate(pickled))

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._elements is None else len(self._elements)

    def __getitem__(self, index: int) -> Any:
        if self._elements is not None:
            return copy.deepcopy(self._elements[index]) if self._copy else self._elements[index]
        begin, end = self._ends[index : index + 2]
        return pickle.loads(self._bytes[begin:end].numpy().data)


class MapDataset(Dataset[Any]):
    """A data set seen through a function. Where the function returns None, another element is tried."""

    def __init__(self, dataset: Any, map_func: Mapper) -> None:
        self._dataset = dataset
        self._map_func = map_func
        self._random = random.Random(42)
        self._usable = set(range(len(dataset)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        index = int(index)
        while (element := self._map_func(self._dataset[index])) is None:
            self._usable.discard(index)
            index = self._random.choice(sorted(self._usable))
        self._usable.add(index)
        return element


class _SampledDataset(IterableDataset[Any]):
    """A data set in the order of a sampler; of n workers each takes every n-th batch."""

    def __init__(self, dataset: Any, sampler: Sampler[int], batch_size: int) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for position, index in enumerate(self._sampler):
            if position // self._batch_size % count == number:
                yield self._dataset[index]


class _AspectRatioGroups(IterableDataset[list[Any]]):
    """Batches of records that are all wider than high, or all not, so that they need less padding."""

    def __init__(self, records: Iterable[dict[str, Any]], batch_size: int) -> None:
        self._records = records
        self._batch_size = batch_size
        self._waiting: dict[bool, Records] = {True: [], False: []}

    def __iter__(self) -> Iterator[Records]:
        for record in self._records:
            wide = record["width"] > record["height"]
            self._waiting[wide].append(record)
            if len(self._waiting[wide]) == self._batch_size:
                batch, self._waiting[wide] = self._waiting[wide], []
                yield batch


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Records:
    """Return the records of one data set, or of several one after another.

    The other arguments concern instance annotations and change nothing for semantic segmentation.
    """
    if min_keypoints > 0 or proposal_files is not None:
        raise NotImplementedError(needs_detectron2("keypoints and proposals"))
    names = [names] if isinstance(names, str) else names
    assert len(names), "at least one data set is needed"
    found = {name: DatasetCatalog.get(name) for name in names}
    for name, records in found.items():
        assert len(records), f"the data set '{name}' is empty"
    return list(itertools.chain.from_iterable(found[name] for name in names))


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler[int],
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Collate | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """Return a loader of lists of elements; ``total_batch_size`` counts those of all processes.

    Other keywords go to torch's DataLoader.
    """
    processes = get_world_size()
    assert total_batch_size > 0, f"a batch holds at least one image, not {total_batch_size}"
    assert total_batch_size % processes == 0, (
        f"the total batch size {total_batch_size} must be a multiple of the number of processes, {processes}"
    )
    batch_size = total_batch_size // processes
    elements = _SampledDataset(dataset, sampler, batch_size)
    common: dict[str, Any] = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    collate = trivial_batch_collator if collate_fn is None else collate_fn
    if not aspect_ratio_grouping:
        common.setdefault("drop_last", True)
        return DataLoader(elements, batch_size=batch_size, collate_fn=collate, **common)
    one_by_one = DataLoader(elements, collate_fn=operator.itemgetter(0), **common)
    groups = _AspectRatioGroups(one_by_one, batch_size)
    return groups if collate_fn is None else (collate(batch) for batch in groups)


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Mapper | None = None,
    *,
    dataset: Any = None,
    sampler: Sampler[int] | None = None,
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    if sampler is None:
        name = cfg.DATALOADER.SAMPLER_TRAIN
        if name != "TrainingSampler":
            raise ValueError(needs_detectron2(f"DATALOADER.SAMPLER_TRAIN {name}"))
        # As in Detectron2, the config's seed is taken as it stands: -1 fixes the order like any other number.
        sampler = TrainingSampler(len(dataset), seed=cfg.SEED)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Collate | None = None,
    **kwargs: Any,
) -> Iterable[Any]:
    """Return an endless loader of lists of mapped records, ``total_batch_size`` per step over all processes.

    ``dataset`` is a list of records or one of torch's data sets; called with a config, all else comes from
    that.
    """
    dataset = _mapped(dataset, mapper)
    return build_batch_data_loader(
        dataset,
        TrainingSampler(len(dataset)) if sampler is None else sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Mapper | None = None
) -> dict[str, Any]:
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collate | None = None,
) -> DataLoader[Any]:
    """Return a loader that gives every mapped record once, shared out over the processes."""
    dataset = _mapped(dataset, mapper)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


def _mapped(dataset: Any, mapper: Mapper | None) -> Any:
    if isinstance(dataset, IterableDataset):
        raise NotImplementedError(needs_detectron2("an iterable data set"))
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the list of elements as it is: the images of a batch need not have one size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed the random states of a worker process from the loader's seed and the worker's number."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
