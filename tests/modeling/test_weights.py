"""Published weights: torchvision's names, and the images that a file of weights expects."""

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.d2.modeling import build_backbone
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.weights import with_known_names


def test_torchvisions_resnets_load_into_detectron2s(tmp_path):
    cfg = get_hicl_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    expected = {
        key: torch.randn_like(value.float())
        for key, value in model.state_dict().items()
        if "num_b" not in key
    }
    assert len(expected) == 100
    torchvision = {_torchvision_name(key): value for key, value in expected.items()}
    torch.save({**torchvision, "fc.weight": torch.ones(3, 3)}, tmp_path / "resnet18.pth")
    checkpoints = Checkpoints(model)
    checkpoints.load_weights(str(tmp_path / "resnet18.pth"), whole=False)
    assert checkpoints.fit.is_whole
    for key, value in expected.items():
        assert torch.equal(model.state_dict()[key], value), key


def _torchvision_name(name):
    """Return torchvision's name of a parameter of a basic ResNet, spelled out part by part."""
    _, stage, *rest = name.split(".")
    if stage == "stem":
        return ".".join(["bn1", *rest[2:]] if "norm" in rest else ["conv1", *rest[1:]])
    block, part, *last = rest
    layer = f"layer{int(stage[-1]) - 1}.{block}"
    if part == "shortcut":
        return f"{layer}.downsample.1.{last[1]}" if last[0] == "norm" else f"{layer}.downsample.0.{last[0]}"
    return f"{layer}.bn{part[-1]}.{last[1]}" if last[0] == "norm" else f"{layer}.{part}.{last[0]}"


def test_other_weights_keep_their_names():
    assert with_known_names({"backbone.stem.conv1.weight": torch.ones(1)}) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is BGR, but the weights .*R-50.pkl were trained with RGB"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "PIXEL_STD is .* were trained with"),
        ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "were trained with BGR"),
    ],
)
def test_images_must_suit_the_weights(key, value, message):
    path = "configs/cityscapes/mask2former_R_50_90k_bs16.yaml"
    check_model_config(load_config(path, ["MODEL.DEVICE", "cpu"]))
    with pytest.raises(InputError, match=message):
        check_model_config(load_config(path, ["MODEL.DEVICE", "cpu", key, value]))
