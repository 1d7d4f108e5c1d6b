"""``train_net.py --list-features``: where in a config's model the branch could read."""

from argparse import Namespace

from tabulate import tabulate

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import build_model
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.features import Place, list_places
from hicl_d2.modeling.settings import base_architecture, blank_size


def main(args: Namespace) -> None:
    """Build the model of ``args`` without its branch, try it on a blank image, and show what passes through it."""
    cfg = load_config(args.config_file, args.opts).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", base_architecture(cfg)
    cfg.freeze()
    check_model_config(cfg)
    places = list_places(build_model(cfg), blank_size(cfg))
    if not places:
        raise InputError(f"no module of {cfg.MODEL.META_ARCHITECTURE} passes maps (B, C, h, w)")
    rows = [(each.module, each.side, each.channels, each.stride, _role(cfg, each)) for each in places]
    console.show(tabulate(rows, headers=["module", "side", "channels", "stride", "can be"]))
    console.show("\nMODEL.HICL.FEATURE names the module, FEATURE_SIDE the side; now: " + _now(cfg))


def _role(cfg: CfgNode, place: Place) -> str:
    if place.is_made_of_predictions:
        return "LOGITS"
    if place.side == "output" and place.channels == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        return "LOGITS, FEATURE"
    return "FEATURE"


def _now(cfg: CfgNode) -> str:
    hicl = cfg.MODEL.HICL
    return f"FEATURE {hicl.FEATURE} ({hicl.FEATURE_SIDE}), LOGITS {hicl.LOGITS or 'none'}"
