"""Config keys of backbones from transformers."""

from hicl_d2.d2.config import CfgNode


def add_hugging_face_keys(cfg: CfgNode) -> None:
    """Add MODEL.TRANSFORMERS, read by build_transformers_backbone."""
    transformers = cfg.MODEL.TRANSFORMERS = CfgNode()
    # Type of the model ("convnext", "swin", "resnet", "dinov2", "segformer", ...) or a folder with its config.json.
    transformers.NAME = "convnext"
    # Features that are output, under transformers' names.
    transformers.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Settings of transformers' own config of that type.
    transformers.SETTINGS = CfgNode(new_allowed=True)
