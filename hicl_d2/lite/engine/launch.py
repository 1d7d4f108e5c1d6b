"""Starting a function in one process, or in several that form a process group."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hicl_d2.command.errors import InputError
from hicl_d2.lite.utils import comm
from hicl_d2.process_groups import leave_process_groups

__all__ = ["DEFAULT_TIMEOUT", "launch"]

THIS_MACHINE = "127.0.0.1"
DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in ``num_gpus_per_machine`` processes on each machine; call this on every one.

    A single process is this one. Several are spawned and joined over nccl, each with a GPU of its own, or
    over gloo on the CPU where there is no GPU. ``dist_url`` is where they meet; "auto" takes a free port.
    Raises InputError if there are fewer GPUs than asked for, or if "auto" is asked to span machines.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    found = torch.cuda.device_count()
    if torch.cuda.is_available() and found < num_gpus_per_machine:
        raise InputError(f"--num-gpus {num_gpus_per_machine}, but this machine has {found}; ask for {found}")
    if dist_url is None or dist_url == "auto":
        if num_machines > 1:
            raise InputError("--dist-url auto serves one machine; for more, name the first: tcp://HOST:PORT")
        # This process opens the place itself, on whichever port is free: one that was free a moment ago may be taken.
        store = dist.TCPStore(THIS_MACHINE, 0, is_master=True, wait_for_workers=False)
    else:
        store = None
    first_rank = machine_rank * num_gpus_per_machine
    meeting = store.port if store is not None else dist_url
    settings = (main_func, args, world_size, num_gpus_per_machine, first_rank, meeting, timeout)
    mp.start_processes(_run_rank, args=settings, nprocs=num_gpus_per_machine, daemon=False)


def _run_rank(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    processes_here: int,
    first_rank: int,
    meeting: str | int,
    timeout: timedelta,
) -> None:
    """Join the process group as one rank and run ``main_func`` in it.

    ``meeting`` is the URL where the processes meet, or the port of this machine on which the launching process waits.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    rank = first_rank + local_rank
    place: dict[str, Any] = {"init_method": meeting}
    if isinstance(meeting, int):
        place = {"store": dist.TCPStore(THIS_MACHINE, meeting, is_master=False, timeout=timeout)}
    dist.init_process_group(backend, world_size=world_size, rank=rank, timeout=timeout, **place)
    comm.create_local_process_group(processes_here)
    comm.synchronize()
    main_func(*args)
    leave_process_groups(comm)
