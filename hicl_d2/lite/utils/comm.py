"""Communication between the processes of a run; without a process group there is one, of rank 0."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_local_group: dist.ProcessGroup | None = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Return this process's number among all processes."""
    return dist.get_rank() if _initialized() else 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Group the processes of each machine; every process calls this once, after ``init_process_group``.

    Raises AssertionError if a group exists already or the number of processes is no multiple of
    ``num_workers_per_machine``.
    """
    global _local_group
    assert _local_group is None, "the local process group was created already, for another number of workers"
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (world_size, num_workers_per_machine)
    for first in range(0, world_size, num_workers_per_machine):
        ranks = range(first, first + num_workers_per_machine)
        group = dist.new_group(list(ranks))  # a collective call: every process makes every group
        if get_rank() in ranks:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the processes on this machine."""
    assert _local_group is not None, (
        "there is no local process group yet: start processes with launch(), or call "
        "comm.create_local_process_group(num_workers_per_machine) after init_process_group()"
    )
    return _local_group


def get_local_rank() -> int:
    """Return this process's number among those on its machine."""
    return dist.get_rank(group=get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    """Return the number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _initialized() else 1


def is_main_process() -> bool:
    """Return whether this process has rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process is here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.cache
def _cpu_group() -> dist.ProcessGroup | None:
    """Return a group of all processes that passes objects through host memory."""
    if dist.get_backend() == dist.Backend.NCCL:
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every process's ``data`` (anything that can be pickled), in rank order, on every process."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every process's ``data``, in rank order, on process ``dst``, and an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    is_destination = dist.get_rank(group) == dst
    gathered: list[Any] = [None] * dist.get_world_size(group) if is_destination else []
    dist.gather_object(data, gathered if is_destination else None, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """Return a seed below 2**31 drawn by rank 0 from NumPy's global generator; every process must call it."""
    seed = int(np.random.randint(2**31))
    return all_gather(seed)[0]
