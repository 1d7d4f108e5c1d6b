"""``hicl export --to detectron2``: a checkpoint and a config for Detectron2's own scripts."""

from pathlib import Path

from torch import nn

from hicl_d2.command.errors import InputError, listing
from hicl_d2.command.files import write_text
from hicl_d2.d2.config import CfgNode, add_deeplab_config, get_cfg
from hicl_d2.engine.checkpoint import save_whole
from hicl_d2.modeling.check import backbone_strides
from hicl_d2.modeling.deeplab.check import DEEPLAB_HEADS, training_crop
from hicl_d2.modeling.memory_format import contiguous
from hicl_d2.modeling.settings import base_architecture

CHECKPOINT, CONFIG = "model_final.pth", "config.yaml"
# What Detectron2 and its DeepLab project build under these names; other models are this project's and others'.
KNOWN = {
    "MODEL.META_ARCHITECTURE": ("SemanticSegmentor",),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_resnet_deeplab_backbone",
    ),
    "MODEL.SEM_SEG_HEAD.NAME": ("SemSegFPNHead", "DeepLabV3PlusHead", "DeepLabV3Head"),
}
# As their name for a backbone where the project has one of its own that is the same for these depths.
SAME_BACKBONE = ("build_dilated_resnet_backbone", "build_resnet_deeplab_backbone", (50, 101, 152))
AS_IT_IS = "Its scripts can use this model with hicl_d2.config.add_hicl_config, as it is"
HEADER = """# Made by hicl export. For a script that knows the keys of Detectron2's DeepLab project:
#   from detectron2.config import get_cfg
#   from detectron2.projects.deeplab import add_deeplab_config
#   cfg = get_cfg(); add_deeplab_config(cfg); cfg.merge_from_file("config.yaml")
"""


def write(cfg: CfgNode, model: nn.Module, folder: Path) -> str:
    """Write the plain ``model`` and its config into ``folder``; return where they are and which images Detectron2 takes.

    The config holds Detectron2's keys and those of its DeepLab project alone; MODEL.WEIGHTS is the checkpoint. Raises
    InputError for a model that Detectron2 does not have.
    """
    plain = _their_config(cfg)
    plain.MODEL.WEIGHTS = str((folder / CHECKPOINT).absolute())
    folder.mkdir(parents=True, exist_ok=True)
    save_whole({"model": contiguous(model.state_dict())}, folder / CHECKPOINT)
    write_text(folder / CONFIG, HEADER + plain.dump())
    crop, head = training_crop(cfg), plain.MODEL.SEM_SEG_HEAD.NAME
    if head not in DEEPLAB_HEADS or crop is None:
        return str(folder)
    return f"{folder}; its {head} takes images alone whose sides, as resized, are multiples of {crop[0]} x {crop[1]} pixels"


def _their_config(cfg: CfgNode) -> CfgNode:
    """Return ``cfg`` in Detectron2's keys. Raises InputError for a name that it does not know."""
    plain = get_cfg()
    add_deeplab_config(plain)
    _copy_values(plain, cfg)
    plain.MODEL.META_ARCHITECTURE = base_architecture(cfg)
    ours, theirs, depths = SAME_BACKBONE
    if ours == plain.MODEL.BACKBONE.NAME and cfg.MODEL.RESNETS.DEPTH in depths:
        plain.MODEL.BACKBONE.NAME = theirs
    for key, names in KNOWN.items():
        section, _, last = key.rpartition(".")
        node = plain
        for part in section.split("."):
            node = node[part]
        if node[last] not in names:
            raise InputError(
                f"Detectron2 has no {node[last]} ({key}); it builds {listing(names)}. {AS_IT_IS}"
            )
    if plain.MODEL.SEM_SEG_HEAD.NAME in DEEPLAB_HEADS:
        _fit_pooling(cfg, plain)
    return plain


def _fit_pooling(cfg: CfgNode, plain: CfgNode) -> None:
    """Make Detectron2's DeepLab heads pool as the model does. Raises InputError for a crop that they refuse."""
    crop, settings = training_crop(cfg), cfg.MODEL.SEM_SEG_HEAD
    strides = backbone_strides(cfg) or {}
    stride = max((strides[name] for name in settings.IN_FEATURES if name in strides), default=1)
    if crop is None:  # over the whole map, which they do without crops
        plain.INPUT.CROP.ENABLED = False
    elif any(side % stride for side in crop):
        raise InputError(
            f"Detectron2's {settings.NAME} refuses a training crop (INPUT.CROP.SIZE) of {crop[0]} x {crop[1]}, which its "
            f"stride {stride} does not divide. {AS_IT_IS}"
        )


def _copy_values(to: CfgNode, source: CfgNode) -> None:
    for key, value in source.items():
        if key not in to:
            continue
        if isinstance(value, CfgNode) and isinstance(to[key], CfgNode):
            _copy_values(to[key], value)
        else:
            to[key] = value
