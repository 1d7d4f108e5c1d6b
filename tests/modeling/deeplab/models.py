"""Small models for the tests of this folder."""

import torch

import hicl_d2.modeling.models  # noqa: F401 - registers heads and backbones
from hicl_d2.config import get_hicl_cfg

DEEPLAB_HEADS = ("DeepLabV3PlusHead", "DeepLabV3Head", "PanopticDeepLabSemSegHead")


def deeplab_cfg(head="DeepLabV3PlusHead", crop=(64, 96), **settings):
    """Return the config of a small segmentor; ``settings`` are keys of MODEL.SEM_SEG_HEAD or MODEL.RESNETS."""
    cfg = get_hicl_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    settings = {"NUM_CLASSES": 4, "CONVS_DIM": 16, "ASPP_CHANNELS": 16, "NAME": head, **settings}
    if head == "DeepLabV3Head":
        settings = {"IN_FEATURES": ["res5"], "COMMON_STRIDE": 16, **settings}
    elif head == "PanopticDeepLabSemSegHead":
        settings = {
            "IN_FEATURES": ["res2", "res3", "res5"],
            "PROJECT_CHANNELS": [4, 8],
            "HEAD_CHANNELS": 8,
            **settings,
        }
    else:
        settings = {"IN_FEATURES": ["res2", "res5"], "PROJECT_CHANNELS": [4], **settings}
    settings.setdefault("OUT_FEATURES", settings["IN_FEATURES"])
    for key, value in settings.items():
        section = (
            cfg.MODEL.SEM_SEG_HEAD if key in cfg.MODEL.SEM_SEG_HEAD and key != "NORM" else cfg.MODEL.RESNETS
        )
        section[key] = value
    cfg.INPUT.CROP.ENABLED = crop is not None
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = list(crop or (0.5, 0.5))
    return cfg


def make_batch(*sizes, num_classes=4, ignore_value=255):
    """Return inputs of these sizes with labels in blocks and an ignored border above."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes:
        blocks = torch.randint(0, num_classes, (height // 16 + 1, width // 16 + 1), generator=generator)
        label = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width].clone()
        label[:3] = ignore_value
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": label, "height": height, "width": width})
    return batch
