"""The config keys of all models together."""

from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.efficientnet_lite.keys import add_efficientnet_lite_keys
from hicl_d2.modeling.hugging_face.keys import add_hugging_face_keys
from hicl_d2.modeling.mask_former.keys import add_mask_former_keys
from hicl_d2.modeling.panoptic_deeplab.keys import add_panoptic_deeplab_keys
from hicl_d2.modeling.swin.keys import add_swin_keys
from hicl_d2.modeling.timm.keys import add_timm_keys


def add_model_keys(cfg: CfgNode) -> None:
    """Add the keys of every model to ``cfg``, which has DeepLab's keys."""
    add_mask_former_keys(cfg)
    add_panoptic_deeplab_keys(cfg)
    add_swin_keys(cfg)
    add_hugging_face_keys(cfg)
    add_efficientnet_lite_keys(cfg)
    add_timm_keys(cfg)
