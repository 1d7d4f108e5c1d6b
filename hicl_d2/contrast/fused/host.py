"""Where tensors live: the fused functions choose their chunk sizes by it.

A CPU works fastest in chunks that stay in its cache, and may read values on the way. Any other device works fastest in a
few large operations, and reading a value there would make the host wait for it.
"""

from torch import Tensor

__all__ = ["on_host"]


def on_host(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is in the host's memory."""
    return tensor.device.type == "cpu"
