"""The method: hierarchical contrastive learning on a feature map, in plain PyTorch.

Nothing here imports the rest of the project or anything but torch.
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
