"""Starting a function in one process, or in several that form a process group."""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hicl_d2.command.errors import InputError
from hicl_d2.lite.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

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
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise InputError("--dist-url auto serves one machine; for more, name the first: tcp://HOST:PORT")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    first_rank = machine_rank * num_gpus_per_machine
    settings = (main_func, args, world_size, num_gpus_per_machine, first_rank, dist_url, timeout)
    mp.start_processes(_run_rank, args=settings, nprocs=num_gpus_per_machine, daemon=False)


def _free_port() -> int:
    """Return a port that was free a moment ago (another program may still take it first)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_rank(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    processes_here: int,
    first_rank: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    """Join the process group as one rank and run ``main_func`` in it."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    rank = first_rank + local_rank
    dist.init_process_group(backend, init_method=dist_url, world_size=world_size, rank=rank, timeout=timeout)
    comm.create_local_process_group(processes_here)
    comm.synchronize()
    main_func(*args)
    if dist.is_initialized():  # main_func may have left by itself
        comm.leave_process_groups()
