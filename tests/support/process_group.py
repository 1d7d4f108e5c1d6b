"""Processes of a test that form a process group, and leave it as a run does."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from hicl_d2.d2.utils import comm
from hicl_d2.lite.utils import comm as lite_comm
from hicl_d2.process_groups import leave_process_groups

WORLD = 2


def in_process_group(function: Callable[..., None]) -> Callable[..., None]:
    """Make ``function(rank, folder, ...)`` one of two processes, which meet in ``folder`` over gloo.

    The group is left when the function has returned, so that nothing in it refers to the group: see `leave_process_groups`.
    """

    @functools.wraps(function)
    def process(rank: int, folder: Any, *rest: Any) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
        function(rank, folder, *rest)
        leave_process_groups(comm, lite_comm)

    return process
