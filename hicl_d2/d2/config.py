"""Config: the tree of keys, its defaults, and construction from it."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.config import CfgNode, configurable, get_cfg
    from detectron2.projects.deeplab import add_deeplab_config
else:
    from hicl_d2.lite.config import CfgNode, configurable, get_cfg
    from hicl_d2.lite.projects.deeplab_config import add_deeplab_config

__all__ = ["CfgNode", "add_deeplab_config", "configurable", "get_cfg"]
