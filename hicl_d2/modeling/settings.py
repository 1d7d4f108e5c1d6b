"""What a config says about any model: its name, its features, an image size that suits it."""

from collections.abc import Iterable

from hicl_d2.command.errors import InputError, listing
from hicl_d2.d2.config import CfgNode

# Detectron2's meta-architectures that train with instances.
INSTANCE_MODELS = ("PanopticFPN", "GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "FCOS")


def base_architecture(cfg: CfgNode) -> str:
    """Return the name of the model itself, without the branch that may be attached to it."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.HICL.BASE if name == "HiCL" else name


def needs_instances(cfg: CfgNode) -> bool:
    """Return whether the model is one of Detectron2's that train with instances: boxes, masks, keypoints."""
    return base_architecture(cfg) in INSTANCE_MODELS


def gives_semantics(cfg: CfgNode) -> bool:
    """Return whether the model predicts a class for every pixel."""
    return not needs_instances(cfg) or base_architecture(cfg) == "PanopticFPN"


def reads_label_maps(cfg: CfgNode) -> bool:
    """Return whether label maps are read in training, by a semantic head or by the branch."""
    has_branch = cfg.MODEL.META_ARCHITECTURE == "HiCL" and cfg.MODEL.HICL.ENABLED
    return gives_semantics(cfg) or has_branch


def blank_size(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width of an image that the model of ``cfg`` can be tried on."""
    crop = cfg.INPUT.CROP
    fixed = crop.ENABLED and crop.TYPE == "absolute"
    return (crop.SIZE[0], crop.SIZE[1]) if fixed else (128, 128)


def check_features(key: str, wanted: list[str], known: Iterable[str]) -> None:
    """Raise InputError if the config key ``key`` names no feature, or one that is not among ``known``."""
    known = list(known)
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        asked = f"names {listing(missing)}" if missing else "is empty"
        raise InputError(f"{key} {asked}; what it can name here: {', '.join(known)}")
