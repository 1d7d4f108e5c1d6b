"""The method: hierarchical contrastive learning on a feature map, in plain PyTorch.

In reading order: `levels` (window sizes and thresholds), `grid` (labels over the feature map), `candidates` (label
statistics of windows), `pruning`, `anchors` (sampling), `components`, `embedding`, `pairing` (who is whose positive),
`loss`, `bank`, and `branch`, which puts them together. `fused` holds fast forms of some functions, `operations` chooses
between them, and `peers` holds the other published contrasts. Nothing here imports the rest of the project, or any package
but torch.
"""

from hicl_d2.contrast.attach import attach, strip
from hicl_d2.contrast.branch import HiCLBranch
from hicl_d2.contrast.build import CONTRASTS, build_contrast
from hicl_d2.contrast.frame import Contrast, ContrastOutput
from hicl_d2.contrast.schedule import ramp

__all__ = [
    "CONTRASTS",
    "Contrast",
    "ContrastOutput",
    "HiCLBranch",
    "attach",
    "build_contrast",
    "ramp",
    "strip",
]
