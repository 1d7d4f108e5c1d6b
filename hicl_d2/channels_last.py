"""Feature maps that lie pixel by pixel in the memory of a CPU, where some operations have a faster form."""

import torch
from torch import Tensor


def is_pixel_by_pixel(x: Tensor) -> bool:
    """Return whether ``x`` is a channels_last batch in the host's memory, in a step that nobody traces."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or x.dim() != 4:
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
