"""Config keys of EfficientNet-Lite."""

from hicl_d2.d2.config import CfgNode


def add_efficientnet_lite_keys(cfg: CfgNode) -> None:
    """Add MODEL.EFFICIENTNET_LITE, read by ``build_efficientnet_lite_backbone``."""
    lite = cfg.MODEL.EFFICIENTNET_LITE = CfgNode()
    # 0, 1 or 2; weights are those of package://efficientnet_lite0 to 2.
    lite.VARIANT = 0
    # Features that are given out: res2 (stride 4) to res5.
    lite.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # The coarsest stride: 8, 16 or 32. Below 32 strides become dilations.
    lite.OUTPUT_STRIDE = 32
    # Normalisation: BN, SyncBN, FrozenBN, or "" for none.
    lite.NORM = "BN"
    # Share of images that skip the last block in training, less in the earlier ones.
    lite.DROP_PATH_RATE = 0.0
