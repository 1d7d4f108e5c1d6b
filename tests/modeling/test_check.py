"""A config that names a model which cannot be built is refused in one line, before anything is built."""

from pathlib import Path

import pytest
import torch

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from hicl_d2.modeling.check import backbone_strides, check_model_config
from tests.modeling.deeplab.models import DEEPLAB_HEADS, deeplab_cfg

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def fpn_cfg(**settings):
    cfg = get_hicl_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in settings.items():
        section, _, name = key.partition("__")
        cfg.MODEL[section][name] = value
    return cfg


@pytest.mark.parametrize("head", DEEPLAB_HEADS)
def test_a_model_that_can_be_built_passes(head):
    check_model_config(deeplab_cfg(head))


def test_semantic_fpn_passes():
    check_model_config(fpn_cfg())


def test_no_norm_passes_and_is_built_in_either_spelling():
    sections = ("RESNETS", "FPN", "SEM_SEG_HEAD")
    for norm in (
        "",
        None,
    ):  # Detectron2 takes None for a norm that is left out and leaves no bias in its place
        cfg = fpn_cfg(**{f"{section}__NORM": norm for section in sections})
        check_model_config(cfg)
        model = build_model(cfg)
        assert not any("norm" in name for name in model.state_dict())
        assert ("backbone.fpn_output2.bias" in model.state_dict()) is (norm == "")


def recipes():
    return [path for path in CONFIGS if not path.name.startswith("Base-")]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_the_project_s_recipes_pass(path):
    cfg = load_config(path, ["MODEL.DEVICE", "cpu"])
    if path.stem.removesuffix("_hicl").endswith("_instances") and not USES_DETECTRON2:
        with pytest.raises(InputError, match=r"'PanopticDeepLab' is not registered.*Detectron2 has others"):
            check_model_config(cfg)
    else:
        check_model_config(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"META_ARCHITECTURE": "SemanticSegmenter"},
            "META_ARCHITECTURE 'SemanticSegmenter' .*did you mean SemanticSegmentor",
        ),
        ({"BACKBONE.NAME": "build_resnet_backbon"}, "did you mean build_resnet_backbone"),
        (
            {"BACKBONE.NAME": "nothing like it"},
            "BACKBONE.NAME 'nothing like it' is not registered; known: .*build_dilated",
        ),
        ({"SEM_SEG_HEAD.NAME": "DeepLabV3"}, "SEM_SEG_HEAD.NAME 'DeepLabV3' .*did you mean DeepLabV3Head"),
        ({"RESNETS.NORM": "syncBN"}, "RESNETS.NORM is 'syncBN'; did you mean SyncBN"),
        ({"SEM_SEG_HEAD.NORM": "batch"}, "SEM_SEG_HEAD.NORM is 'batch'; known: BN, FrozenBN"),
        (
            {"RESNETS.OUT_FEATURES": ["res2", "res6"]},
            "RESNETS.OUT_FEATURES names res6; .*stem, res2, res3, res4, res5",
        ),
        ({"RESNETS.OUT_FEATURES": []}, "RESNETS.OUT_FEATURES is empty"),
        (
            {"SEM_SEG_HEAD.IN_FEATURES": ["res3", "res5"]},
            "IN_FEATURES names res3; what it can name here: res2, res5",
        ),
        ({"RESNETS.DEPTH": 19}, "DEPTH is 19"),
        (
            {"SEM_SEG_HEAD.CLASS_WEIGHTS": [1.0, 2.0]},
            r"CLASS_WEIGHTS is \[1.0, 2.0\]; .*each of the \d+ classes",
        ),
        ({"SEM_SEG_HEAD.NUM_CLASSES": 2, "SEM_SEG_HEAD.CLASS_WEIGHTS": [0, 0]}, "not all of them 0"),
        ({"SEM_SEG_HEAD.NUM_CLASSES": 2, "SEM_SEG_HEAD.CLASS_WEIGHTS": [1, -1]}, "one number from 0 on"),
        ({"SEM_SEG_HEAD.NUM_CLASSES": 2, "SEM_SEG_HEAD.CLASS_WEIGHTS": [1, float("nan")]}, "from 0 on"),
        (
            {"SEM_SEG_HEAD.NAME": "SemSegFPNHead", "SEM_SEG_HEAD.CLASS_WEIGHTS": [1.0]},
            "not read by SemSegFPNHead of SemanticSegmentor, only by DeepLab",
        ),
        ({"RESNETS.RES4_DILATION": 2}, "RES5_DILATION is 2; it must be 4"),
        (
            {"BACKBONE.NAME": "build_resnet_deeplab_backbone"},
            "set MODEL.BACKBONE.NAME build_dilated_resnet_backbone",
        ),
    ],
)
def test_a_slip_is_one_line(change, message):
    cfg = deeplab_cfg()
    for key, value in change.items():
        *sections, name = key.split(".")
        node = cfg.MODEL
        for section in sections:
            node = node[section]
        node[name] = value
    with pytest.raises(InputError, match=message) as caught:
        check_model_config(cfg)
    assert "\n" not in str(caught.value)


def test_the_base_of_hicl_is_checked_too():
    cfg = deeplab_cfg()
    cfg.MODEL.META_ARCHITECTURE = "HiCL"
    check_model_config(cfg)
    cfg.MODEL.HICL.BASE = "Segmentor"
    with pytest.raises(InputError, match=r"MODEL.HICL.BASE 'Segmentor' is not registered"):
        check_model_config(cfg)


def test_a_model_of_detectron2_s_is_known_where_it_is_installed():
    cfg = deeplab_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    if USES_DETECTRON2:
        check_model_config(cfg)
    else:
        with pytest.raises(
            InputError, match=r"'PanopticFPN' is not registered.*Detectron2 has others \(https://"
        ):
            check_model_config(cfg)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FPN__IN_FEATURES": ["res2", "res3", "res6"]}, "MODEL.FPN.IN_FEATURES names res6"),
        ({"FPN__IN_FEATURES": []}, "MODEL.FPN.IN_FEATURES is empty"),
        (
            {"SEM_SEG_HEAD__IN_FEATURES": ["p2", "p7"]},
            "SEM_SEG_HEAD.IN_FEATURES names p7; .*p2, p3, p4, p5, p6",
        ),
    ],
)
def test_features_of_a_pyramid(settings, message):
    with pytest.raises(InputError, match=message):
        check_model_config(fpn_cfg(**settings))


@pytest.mark.parametrize(
    "name", ["build_dilated_resnet_backbone", "build_resnet_backbone", "build_resnet_fpn_backbone"]
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_strides_are_known_before_the_backbone_is_built(name, dilation):
    cfg = fpn_cfg(RESNETS__RES5_DILATION=dilation, RESNETS__NORM="BN")
    cfg.MODEL.BACKBONE.NAME = name
    if name == "build_resnet_fpn_backbone" and dilation == 2:
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    with torch.device("meta"):
        built = build_backbone(cfg).output_shape()
    known = backbone_strides(cfg)
    if name == "build_resnet_fpn_backbone" and dilation == 2:
        known.pop("p5"), built.pop("p5")
    assert known == {feature: shape.stride for feature, shape in built.items()}


def test_other_backbones_are_left_to_their_own_checks():
    BACKBONE_REGISTRY._do_register("some_backbone", lambda cfg, shape: None)
    try:
        cfg = deeplab_cfg()
        cfg.MODEL.BACKBONE.NAME = "some_backbone"
        assert backbone_strides(cfg) is None
        check_model_config(cfg)
    finally:
        BACKBONE_REGISTRY._obj_map.pop("some_backbone")


def test_a_detection_model_may_leave_the_semantic_head_as_it_is():
    cfg = get_hicl_cfg()
    cfg.MODEL.DEVICE = "cpu"
    if USES_DETECTRON2:
        check_model_config(cfg)
