"""Where tensors are, which decides how work is cut up.

A CPU works fastest in pieces that stay in its cache, and may look at values on the way. Any other device is told what to
do call by call, so there a few large operations are best, and looking at a value would make the host wait.
"""

from torch import Tensor

__all__ = ["on_host"]


def on_host(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is in the host's memory."""
    return tensor.device.type == "cpu"
