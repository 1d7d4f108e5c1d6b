"""DeepLab's config keys. A module of its own, so that reading a config does not import torch."""

from hicl_d2.lite.config import CfgNode

__all__ = ["add_deeplab_config"]


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add DeepLab's keys and their defaults to ``cfg``."""
    # Crops are drawn anew (up to ten times) until no class covers more than this share of one.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Exponent of the poly schedule, and the share of the learning rate at which it stops falling (0: never).
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    head = cfg.MODEL.SEM_SEG_HEAD
    # Loss: cross_entropy or hard_pixel_mining.
    head.LOSS_TYPE = "hard_pixel_mining"
    # Finer features that the decoder joins, and the channels that each is projected to.
    head.PROJECT_FEATURES = ["res2"]
    head.PROJECT_CHANNELS = [48]
    # Pyramid of dilated convolutions: channels, dilations and dropout.
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    # Whether the head's 3x3 and 5x5 convolutions are depthwise separable.
    head.USE_DEPTHWISE_SEPARABLE_CONV = False
    resnets = cfg.MODEL.RESNETS
    # Dilation of res4, and the further dilations of the three blocks of res5.
    resnets.RES4_DILATION = 1
    resnets.RES5_MULTI_GRID = [1, 2, 4]
    # Stem: basic (one 7x7 convolution) or deeplab (three 3x3 convolutions).
    resnets.STEM_TYPE = "deeplab"
