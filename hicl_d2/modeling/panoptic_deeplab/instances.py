"""The head of instance centres and offsets: Detectron2's own, for images of any size."""

from typing import Any

from torch import nn

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import ASPP, ShapeSpec
from hicl_d2.d2.projects import original
from hicl_d2.modeling.deeplab.check import training_crop
from hicl_d2.modeling.deeplab.pooling import accept_any_size

# Where Detectron2 defines the head and the registry of its kind.
INSTANCE_HEADS = "projects.panoptic_deeplab.panoptic_seg"


def PanopticDeepLabInsEmbedHead(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:  # noqa: N802 - its name there
    """Build Detectron2's head for the settings of MODEL.INS_EMBED_HEAD, with image pooling as `accept_any_size` makes it.

    Detectron2's head raises an error for a training crop that is no multiple of the stride of its coarsest feature. It is
    built for the next larger multiple, which gives the same pooling window as rounding up the crop's size in cells.
    """
    stride = max(int(input_shape[name].stride or 1) for name in cfg.MODEL.INS_EMBED_HEAD.IN_FEATURES)
    crop = training_crop(cfg)
    adapted: Any = cfg.clone()
    adapted.defrost()
    adapted.INPUT.CROP.ENABLED = crop is not None
    if crop is not None:
        adapted.INPUT.CROP.SIZE = [-(-side // stride) * stride for side in crop]
    head = original(INSTANCE_HEADS, "PanopticDeepLabInsEmbedHead")(adapted, input_shape)
    for module in head.modules():
        if isinstance(module, ASPP):
            accept_any_size(module)
    return head
