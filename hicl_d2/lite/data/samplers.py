"""Samplers: the order of the records, and their distribution over processes."""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from hicl_d2.lite.utils import comm


class TrainingSampler(Sampler[int]):
    """An endless stream of indices, one shuffle of the whole data set after another.

    All processes see the same stream; each takes every ``world_size``-th index of it, from its rank on.
    ``seed`` None stands for a random seed that the processes agree on.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) is a number of records, not a {type(size)}")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) is at least 1, not {size}")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler[int]):
    """Every index once: each process takes a contiguous range, the first ones one index more where needed."""

    def __init__(self, size: int) -> None:
        assert size > 0, "there is nothing to run inference on"
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, rest = divmod(total_size, world_size)
        begin = rank * share + min(rank, rest)
        return range(begin, begin + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
