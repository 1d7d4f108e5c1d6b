"""Dilated ResNets: strides, dilations, and what they share with the plain ones."""

import pytest
import torch

from hicl_d2.command.errors import InputError
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, build_backbone
from hicl_d2.modeling.dilated_resnet.backbone import (
    DilatedBasicBlock,
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
)
from hicl_d2.modeling.dilated_resnet.stages import dilated_resnet_strides
from tests.modeling.deeplab.models import deeplab_cfg

FEATURES = ["stem", "res2", "res3", "res4", "res5"]


def resnet_cfg(depth, **settings):
    wide = {"RES2_OUT_CHANNELS": 64 if depth < 50 else 256, "STEM_OUT_CHANNELS": 64, "OUT_FEATURES": FEATURES}
    return deeplab_cfg(DEPTH=depth, **{**wide, **settings})


def build(depth, device="meta", **settings):
    cfg = resnet_cfg(depth, **settings)
    torch.manual_seed(0)
    with torch.device(device):
        return build_backbone(cfg), cfg


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize(
    ("res4", "res5", "last"), [(1, 1, (16, 32)), (1, 2, (16, 16)), (1, 4, (16, 16)), (2, 4, (8, 8))]
)
def test_dilation_replaces_strides(depth, res4, res5, last):
    backbone, cfg = build(depth, RES4_DILATION=res4, RES5_DILATION=res5)
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert strides == dict(zip(FEATURES, (4, 4, 8, *last), strict=True))
    assert dilated_resnet_strides(cfg.MODEL.RESNETS) == strides


@pytest.mark.parametrize("depth", [18, 50])
def test_feature_maps_have_the_announced_shapes(depth):
    backbone, _ = build(depth, "cpu", RES2_OUT_CHANNELS=16, WIDTH_PER_GROUP=4)
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, 64, 96))
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize(
    ("depth", "grid", "expected"),
    [(18, [1, 2, 4], [2, 4]), (18, [1, 1], [2, 2]), (34, [1, 2, 4], [2, 4, 8]), (50, [1, 2, 4], [2, 4, 8])],
)
def test_the_multi_grid_multiplies_the_dilation_of_res5(depth, grid, expected):
    backbone, _ = build(depth, RES5_DILATION=2, RES5_MULTI_GRID=grid)
    for block, dilation in zip(backbone.res5, expected, strict=True):
        assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
        assert block.conv1.dilation == ((dilation, dilation) if depth < 50 else (1, 1))
    assert {block.conv2.dilation for block in backbone.res4} == {(1, 1)}


@pytest.mark.parametrize("depth", [18, 50])
def test_without_dilation_it_is_the_plain_resnet(depth):
    settings = {"RES5_DILATION": 1, "RES5_MULTI_GRID": [1, 1, 1], "STEM_TYPE": "basic"}
    dilated, cfg = build(depth, "cpu", **settings)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    torch.manual_seed(0)
    plain = build_backbone(cfg)
    assert list(dilated.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(dilated.parameters(), plain.parameters(), strict=True))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = dilated.eval()(x), plain.eval()(x)
    assert all(torch.equal(found[name], expected[name]) for name in FEATURES)


def test_a_dilated_block_sees_every_second_pixel():
    """With dilation 2 the four pixel phases are four separate images of half the size."""
    torch.manual_seed(0)
    block, plain = DilatedBasicBlock(3, 4, dilation=2).eval(), DilatedBasicBlock(3, 4).eval()
    plain.load_state_dict(block.state_dict())
    x = torch.randn(1, 3, 8, 12)
    found = block(x)
    for top in (0, 1):
        for left in (0, 1):
            torch.testing.assert_close(found[..., top::2, left::2], plain(x[..., top::2, left::2]))


def test_freezing():
    cfg = resnet_cfg(18, RES2_OUT_CHANNELS=8)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg)
    trained = {
        name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad
    }
    assert trained == {"res3", "res4", "res5"}


def test_stages_after_the_last_feature_are_not_made():
    backbone, _ = build(50, OUT_FEATURES=["res3"])
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]


@pytest.mark.parametrize(
    ("depth", "settings", "message"),
    [
        (20, {}, "DEPTH is 20; it must be 18 or 34 or 50 or 101 or 152"),
        (50, {"RES4_DILATION": 3}, "RES4_DILATION is 3; it must be 1 or 2"),
        (50, {"RES5_DILATION": 3}, "RES5_DILATION is 3; it must be 1 or 2 or 4 with RES4_DILATION 1"),
        (
            50,
            {"RES4_DILATION": 2, "RES5_DILATION": 2},
            "RES5_DILATION is 2; it must be 4 with RES4_DILATION 2",
        ),
        (
            50,
            {"RES5_MULTI_GRID": [1, 2]},
            "RES5_MULTI_GRID is .1, 2.; for DEPTH 50 it must hold 3 whole numbers",
        ),
        (50, {"RES5_MULTI_GRID": [1, 2, 0]}, "RES5_MULTI_GRID"),
        (18, {"RES5_MULTI_GRID": [1]}, "it must hold 2 whole numbers"),
        (18, {"RES2_OUT_CHANNELS": 256}, "RES2_OUT_CHANNELS is 256; for DEPTH 18 it must be 64, or less"),
        (18, {"NUM_GROUPS": 32}, "NUM_GROUPS is 32"),
        (50, {"STEM_TYPE": "Deeplab"}, "STEM_TYPE is 'Deeplab'; it must be basic or deeplab"),
        (50, {"DEFORM_ON_PER_STAGE": [False, False, False, True]}, "no deformable convolutions"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(depth, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        build(depth, **settings)
    assert "\n" not in str(caught.value)


def test_both_names_are_registered_and_detectron2_s_knows_its_own_depths():
    assert BACKBONE_REGISTRY.get("build_dilated_resnet_backbone") is build_dilated_resnet_backbone
    assert "build_resnet_deeplab_backbone" in BACKBONE_REGISTRY
    with pytest.raises(InputError, match=r"set MODEL.BACKBONE.NAME build_dilated_resnet_backbone"):
        build_resnet_deeplab_backbone(resnet_cfg(18), ShapeSpec(channels=3))
    with torch.device("meta"):
        backbone = build_resnet_deeplab_backbone(resnet_cfg(50), ShapeSpec(channels=3))
    assert backbone.output_shape()["res5"].stride == 16
