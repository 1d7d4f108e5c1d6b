"""Models that the branch is attached to in tests: one small config for each kind."""

from collections.abc import Callable

import torch

import hicl_d2.modeling.models  # noqa: F401 - registers models
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import build_model
from tests.modeling.deeplab.models import deeplab_cfg
from tests.modeling.mask_former.models import mask_former_batch, mask_former_cfg


def _deeplab(head: str) -> Callable[[], CfgNode]:
    return lambda: deeplab_cfg(head, crop=(64, 64), NUM_CLASSES=7)


def _semantic_fpn() -> CfgNode:
    cfg = get_hicl_cfg()
    model, head = cfg.MODEL, cfg.MODEL.SEM_SEG_HEAD
    model.DEVICE, model.META_ARCHITECTURE = "cpu", "SemanticSegmentor"
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.NORM = 18, 64, "BN"
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = head.CONVS_DIM = 32
    head.NAME, head.IN_FEATURES, head.NUM_CLASSES = "SemSegFPNHead", ["p2", "p3", "p4", "p5"], 7
    return cfg


CASES: dict[str, Callable[[], CfgNode]] = {
    "DeepLabV3+": _deeplab("DeepLabV3PlusHead"),
    "DeepLabV3": _deeplab("DeepLabV3Head"),
    "semantic head of Panoptic-DeepLab": _deeplab("PanopticDeepLabSemSegHead"),
    "semantic FPN": _semantic_fpn,
    "Mask2Former": mask_former_cfg,
    "Mask2Former, Swin": lambda: mask_former_cfg("D2SwinTransformer"),
}


def case_cfg(name: str, with_branch: bool = True, **hicl: object) -> CfgNode:
    """Return the config of a case, with or without the branch; ``hicl`` are keys of MODEL.HICL."""
    cfg = CASES[name]()
    cfg.SEED = 3
    settings = cfg.MODEL.HICL
    settings.WARMUP_ITERS, settings.WINDOWS = 0, [1, 2]
    settings.ANCHORS = settings.COMPONENTS = 64
    settings.DIM = settings.HIDDEN_DIM = 16
    for key, value in hicl.items():
        settings[key] = value
    if with_branch:
        settings.BASE, cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE, "HiCL"
    return cfg


def case_model(name: str, with_branch: bool = True, seed: int = 7, **hicl: object) -> torch.nn.Module:
    """Build the model of a case; without dropout, whose numbers would differ from call to call."""
    torch.manual_seed(seed)
    model = build_model(case_cfg(name, with_branch, **hicl))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def case_batch() -> list[dict]:
    """Return two images of 64 x 64 with labels."""
    return mask_former_batch(((64, 64), (64, 64)))
