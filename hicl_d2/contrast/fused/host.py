"""Where tensors live: the fused functions choose their chunk sizes by it.

A CPU works fastest in chunks that stay in its cache, and may read values on the way. Any other device works fastest in a
few large operations, and reading a value there would make the host wait for it.
"""

import torch
from torch import Tensor

__all__ = ["is_pixel_by_pixel", "on_host"]


def on_host(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is in the host's memory."""
    return tensor.device.type == "cpu"


def is_pixel_by_pixel(x: Tensor) -> bool:
    """Return whether ``x`` is a channels_last batch in the host's memory, in a step that nobody traces."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not on_host(x) or x.dim() != 4:
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
