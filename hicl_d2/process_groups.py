"""Leaving process groups, so that no process aborts at its end."""

import gc
from types import ModuleType

import torch.distributed as dist

__all__ = ["leave_process_groups"]


def leave_process_groups(*remembering: ModuleType) -> None:
    """Leave all process groups, once no communication is under way; without any group do nothing.

    A worker thread of gloo may hold the last reference to a tensor. If a group still lives when the interpreter shuts down,
    that thread can no longer release the tensor, and aborts the process. Destroying the groups joins their threads, but
    only once nothing in Python refers to them.

    Args:
        remembering: modules whose globals and caches hold groups and are emptied, such as ``comm`` of either runtime.
    """
    for module in remembering:
        for name, value in list(vars(module).items()):
            if isinstance(value, dist.ProcessGroup):
                setattr(module, name, None)
            elif hasattr(value, "cache_clear"):
                value.cache_clear()
    gc.collect()  # a trainer and its hooks refer to each other, and the trainer's model to a group
    if dist.is_initialized():
        dist.destroy_process_group()
