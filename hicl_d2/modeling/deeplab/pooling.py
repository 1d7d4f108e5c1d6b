"""DeepLab's image pooling for maps of any size.

DeepLab (Chen et al. 2017) gives each pixel the mean of the image's features; Detectron2 takes that mean over windows of the
size of a training crop, one cell apart, and resizes the map of means to the map that was pooled. Its pyramid refuses a map
that the window does not divide. The windows are one cell apart, so the same computation is defined for every map that holds
one; a map that is lower or narrower than the window is pooled over its whole height or width. Where Detectron2 accepts the
map, the result is Detectron2's, bit for bit.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.d2.layers import ASPP


class WindowPooling(nn.AvgPool2d):
    """Average over windows of ``kernel_size`` (h, w), one cell apart; smaller maps are one window."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, max(H - h, 0) + 1, max(W - w, 0) + 1) for x (B, C, H, W)."""
        height, width = (min(pair) for pair in zip(self.kernel_size, x.shape[-2:], strict=True))  # type: ignore[arg-type]
        return F.avg_pool2d(x, (height, width), stride=1)


def accept_any_size(aspp: ASPP) -> ASPP:
    """Let the pyramid ``aspp``, of either runtime, pool maps of any size, in place; return it.

    Its parameters and their names stay as they are.
    """
    window: Sequence[int] | None = aspp.pool_kernel_size
    if window is not None:
        # The forward of the pyramid checks the size of a map only if this is set.
        aspp.pool_kernel_size = None
        pooling: nn.Sequential = aspp.convs[-1]
        pooling[0] = WindowPooling((window[0], window[1]), stride=1)
    return aspp
