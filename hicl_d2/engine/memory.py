"""How much memory a run has taken, and what becomes of the memory that it frees."""

import ctypes
import os
import resource
import sys

import torch


def peak_memory_mb(device: str) -> float:
    """Return the largest amount of memory in use so far, in MiB: of the GPU, or of the process on the CPU."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


# Settings of glibc's mallopt, in bytes: how much free memory at the top of the heap is given back, and from what size on a
# block is mapped by itself. The second is the largest that it takes, which it comes to by itself after some large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**25
_ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for its next step; return whether it does.

    By default glibc gives it back at the end of a step, and the system hands zeroed pages out one by one when the next step
    asks for as much: 10,000 to 50,000 page faults in a training step on a CPU. Blocks of 32 MB and more are given back all the
    same. Settings of one's own stay (MALLOC_... and GLIBC_TUNABLES of the environment), and other C libraries go on as they
    are.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _ALL))
