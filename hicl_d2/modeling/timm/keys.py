"""Config keys of backbones from timm."""

from hicl_d2.d2.config import CfgNode


def add_timm_keys(cfg: CfgNode) -> None:
    """Add MODEL.TIMM, read by build_timm_backbone."""
    timm = cfg.MODEL.TIMM = CfgNode()
    # Name of a model in timm.list_models(); features that are output, res{n} for the stride 2^n; its own arguments.
    timm.NAME = "resnet50"
    timm.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    timm.SETTINGS = CfgNode(new_allowed=True)
