"""How much memory a run has taken."""

import resource
import sys

import torch


def peak_memory_mb(device: str) -> float:
    """Return the largest amount of memory in use so far, in MiB: of the GPU, or of the process on the CPU."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
