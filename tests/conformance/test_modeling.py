"""Models have Detectron2's parameters, initialisation, losses, predictions and training steps."""

import copy
import functools
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import hicl_d2.modeling.models  # registers the project's own
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.modeling import SEM_SEG_HEADS_REGISTRY
from hicl_d2.modeling.dilated_resnet.backbone import build_dilated_resnet_backbone
from tests.conformance.runtimes import golden, load, needs_detectron2, plain
from tests.conformance.tensors import assert_close, digest, image_batch, largest_difference, names

DEEPLAB = "build_resnet_deeplab_backbone"
# Head, backbone, depth, and what differs from `config`'s defaults.
MODELS: dict[str, dict[str, Any]] = {
    "DeepLabV3+ R-52": {"head": "DeepLabV3PlusHead", "out": ["res2", "res5"]},
    "DeepLabV3+ R-52, stride 8, basic stem": {
        "head": "DeepLabV3PlusHead",
        "out": ["res2", "res5"],
        "resnet": {"RES4_DILATION": 2, "RES5_DILATION": 4, "STEM_TYPE": "basic", "STRIDE_IN_1X1": True},
        "sem_seg": {"LOSS_TYPE": "cross_entropy", "LOSS_WEIGHT": 0.7},
    },
    "DeepLabV3+ R-52, separable, two projections, no crop": {
        "head": "DeepLabV3PlusHead",
        "out": ["res2", "res3", "res5"],
        "sem_seg": {"USE_DEPTHWISE_SEPARABLE_CONV": True, "PROJECT_CHANNELS": [8, 12], "NORM": ""},
        "crop": False,
    },
    "DeepLabV3 R-52": {"head": "DeepLabV3Head", "out": ["res5"], "sem_seg": {"COMMON_STRIDE": 16}},
    "Panoptic-DeepLab R-52": {
        "head": "PanopticDeepLabSemSegHead",
        "out": ["res2", "res3", "res5"],
        "sem_seg": {"PROJECT_CHANNELS": [8, 12], "LOSS_TOP_K": 0.3},
    },
    "Panoptic-DeepLab R-52, separable": {
        "head": "PanopticDeepLabSemSegHead",
        "out": ["res2", "res3", "res5"],
        "sem_seg": {"PROJECT_CHANNELS": [8, 12], "USE_DEPTHWISE_SEPARABLE_CONV": True, "LOSS_TOP_K": 1.0},
    },
    "semantic FPN R-18": {
        "head": "SemSegFPNHead",
        "backbone": "build_resnet_fpn_backbone",
        "out": ["res2", "res3", "res4", "res5"],
        "resnet": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1},
        "sem_seg": {"NORM": "GN"},
    },
    "semantic FPN R-50, frozen": {
        "head": "SemSegFPNHead",
        "backbone": "build_resnet_fpn_backbone",
        "out": ["res2", "res3", "res4", "res5"],
        "resnet": {"NORM": "FrozenBN", "RES5_DILATION": 1, "STRIDE_IN_1X1": True},
        "fpn": {"FUSE_TYPE": "avg", "NORM": "BN"},
        "freeze": 2,
    },
}
BACKBONES: dict[str, dict[str, Any]] = {
    "R-18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1},
    "R-34, frozen": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1},
    "R-50": {"DEPTH": 50, "RES5_DILATION": 1},
    "R-50 dilated": {"DEPTH": 50, "STRIDE_IN_1X1": True},
    "ResNeXt-50": {"DEPTH": 50, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 8, "RES5_DILATION": 1},
}


def config(runtime: str, model: dict[str, Any]) -> Any:
    cfg = load(runtime, "config").get_cfg()
    load(runtime, "projects.deeplab").add_deeplab_config(cfg)
    head, resnet = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RESNETS
    cfg.MODEL.BACKBONE.NAME = model.get("backbone", DEEPLAB)
    cfg.MODEL.BACKBONE.FREEZE_AT = model.get("freeze", 0)
    resnet.OUT_FEATURES = head.IN_FEATURES = model["out"]
    resnet.NORM, resnet.STRIDE_IN_1X1, resnet.RES5_DILATION = "SyncBN", False, 2
    resnet.STEM_OUT_CHANNELS = 64
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = (
        model.get("crop", True),
        "absolute",
        [64, 96],
    )
    head.NAME, head.NUM_CLASSES, head.NORM = model["head"], 5, "SyncBN"
    head.CONVS_DIM = head.ASPP_CHANNELS = 32
    head.PROJECT_CHANNELS = [12]
    head.HEAD_CHANNELS, head.LOSS_TOP_K = 16, 0.2
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone":
        cfg.MODEL.FPN.IN_FEATURES, head.IN_FEATURES = model["out"], ["p2", "p3", "p4", "p5"]
        cfg.MODEL.FPN.OUT_CHANNELS = 32
    for section, values in (("resnet", resnet), ("sem_seg", head), ("fpn", cfg.MODEL.FPN)):
        for key, value in model.get(section, {}).items():
            values[key] = value
    return cfg


@functools.cache
def real_panoptic_head() -> Any:
    """Return Detectron2's head; its module needs panopticapi, of which the semantic half uses nothing."""
    heads = load("detectron2", "modeling").SEM_SEG_HEADS_REGISTRY
    before = heads._obj_map.pop("PanopticDeepLabSemSegHead", None)
    utils = ModuleType("panopticapi.utils")
    utils.rgb2id = None  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"panopticapi": ModuleType("panopticapi"), "panopticapi.utils": utils}):
        project = load("detectron2", "projects.panoptic_deeplab")
    if before is not None:
        heads._obj_map["PanopticDeepLabSemSegHead"] = before
    return project.PanopticDeepLabSemSegHead


def build(runtime: str, cfg: Any) -> nn.Module:
    """Build a segmentor of ``runtime``'s parts; in lite the DeepLab parts are the project's own, on either door."""
    modeling = load(runtime, "modeling")
    backbone_name, head_name = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SEM_SEG_HEAD.NAME
    shape = load(runtime, "layers").ShapeSpec(channels=3)
    if runtime == "lite" and backbone_name == DEEPLAB:
        backbone = build_dilated_resnet_backbone(cfg, shape)
    else:
        if runtime == "detectron2":
            load(runtime, "projects.deeplab")
        backbone = modeling.BACKBONE_REGISTRY.get(backbone_name)(cfg, shape)
    if runtime == "lite" and hasattr(hicl_d2.modeling.models, head_name):
        head = getattr(hicl_d2.modeling.models, head_name)
    elif head_name == "PanopticDeepLabSemSegHead":
        head = real_panoptic_head()
    elif hasattr(hicl_d2.modeling.models, head_name):  # the registry may hold the project's
        head = getattr(load(runtime, "projects.deeplab"), head_name)
    else:
        head = modeling.SEM_SEG_HEADS_REGISTRY.get(head_name)
    return modeling.META_ARCH_REGISTRY.get("SemanticSegmentor")(
        backbone=backbone,
        sem_seg_head=head(cfg, backbone.output_shape()),
        pixel_mean=[123.675, 116.280, 103.530],
        pixel_std=[58.395, 57.120, 57.375],
    )


def results(runtime: str, model: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return a model's first state and predictions, its losses, gradients, state and predictions in a step of SGD."""
    torch.manual_seed(3)
    segmentor = build(runtime, config(runtime, model))
    first = {key: value.clone() for key, value in segmentor.state_dict().items()}
    batch = image_batch([(64, 96), (64, 96)], 5)
    first_predictions = predict(segmentor, batch)
    losses = segmentor.train()(batch)
    parameters = {key: value for key, value in segmentor.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01, momentum=0.9)
    sum(losses.values()).backward()
    optimizer.step()
    return {
        "first state": first,
        "first predictions": first_predictions,
        "losses": {key: value.detach() for key, value in losses.items()},
        "gradients": {key: value.grad for key, value in parameters.items() if value.grad is not None},
        "state after a step": segmentor.state_dict(),
        "predictions": predict(segmentor, batch),
        "random state": {"next": torch.rand(3)},
    }


def predict(segmentor: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the predictions for a batch and for an image of another size, a multiple of the crop's."""
    segmentor.eval()
    with torch.no_grad():
        small, large = segmentor(batch), segmentor(image_batch([(128, 96)], 5))
    return {str(i): output["sem_seg"] for i, output in enumerate([*small, *large])}


def backbone_results(runtime: str, name: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return first parameters and features of a plain ResNet."""
    model = {"head": "SemSegFPNHead", "backbone": "build_resnet_backbone", "out": ["stem", "res3", "res5"]}
    cfg = config(runtime, {**model, "resnet": settings, "freeze": 3 if "frozen" in name else 0})
    torch.manual_seed(7)
    backbone = load(runtime, "modeling").build_backbone(cfg).eval()
    with torch.no_grad():
        features = backbone(image_batch([(64, 80)], 5)[0]["image"][None] / 100 - 1)
    shapes = {name: torch.tensor([s.channels, s.stride]) for name, s in backbone.output_shape().items()}
    frozen = torch.tensor([not parameter.requires_grad for parameter in backbone.parameters()]).sum()
    return {
        **{f"state {key}": value for key, value in backbone.state_dict().items()},
        **{f"feature {key}": value for key, value in features.items()},
        **{f"shape {key}": value for key, value in shapes.items()},
        "frozen": frozen,
    }


def figures(runtime: str) -> dict[str, Any]:
    models = {}
    for name, model in MODELS.items():
        seen = results(runtime, model)
        models[name] = {
            "keys": names(seen["first state"]),
            "first state": digest(
                torch.cat([value.flatten().float() for value in seen["first state"].values()])
            ),
            "loss": {key: value.item() for key, value in seen["losses"].items()},
            "trained": names(seen["gradients"]),
            # Not those after a step: on another processor its rounding grows to a thousandth of them.
            "predictions": {key: digest(value) for key, value in seen["first predictions"].items()},
        }
    backbones = {}
    for name, settings in BACKBONES.items():
        found = backbone_results(runtime, name, settings)
        picked = {key: digest(value.float()) for key, value in found.items() if not key.startswith("state")}
        backbones[name] = {"keys": names(found), **picked}
    return {
        "models": models,
        "backbones": backbones,
        "resize": _resize(runtime),
    }


def _resize(runtime: str) -> list[Any]:
    resize = load(runtime, "modeling.postprocessing").sem_seg_postprocess
    logits = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(0))
    sizes = [((32, 40), 32, 40), ((30, 33), 30, 33), ((30, 33), 61, 70), ((17, 40), 9, 80)]
    return [digest(resize(logits, *size)) for size in sizes]


def test_lite_equals_the_recorded_figures() -> None:
    assert_close(plain(figures("lite")), golden("modeling"), rel=1e-3, abs_=1e-5)


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert_close(plain(figures("detectron2")), golden("modeling"), rel=1e-3, abs_=1e-5)


@needs_detectron2
@pytest.mark.parametrize("name", MODELS)
def test_one_training_step_and_the_predictions_are_equal(name: str) -> None:
    ours, theirs = results("lite", MODELS[name]), results("detectron2", MODELS[name])
    for part in ("first state", "random state"):
        assert largest_difference(ours[part], theirs[part]) == 0, part
    for part in ("first predictions", "losses", "gradients", "state after a step", "predictions"):
        assert largest_difference(ours[part], theirs[part]) <= 2e-6, part


@pytest.mark.skipif(not USES_DETECTRON2, reason="the door does not lead to Detectron2 here")
@pytest.mark.parametrize("name", [name for name in MODELS if "DeepLab" in name])
def test_the_heads_that_replace_detectron2s_equal_them_bit_for_bit_on_every_size_that_those_accept(
    name: str,
) -> None:
    torch.manual_seed(3)
    cfg = config("detectron2", MODELS[name])
    theirs = build("detectron2", cfg)
    torch.manual_seed(3)
    shapes = theirs.backbone.output_shape()
    ours = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, shapes)
    assert type(ours).__module__.startswith("hicl_d2.")
    ours.load_state_dict(theirs.sem_seg_head.state_dict())
    segmentors = [theirs.eval(), copy.copy(theirs)]
    segmentors[1]._modules = {**theirs._modules, "sem_seg_head": ours.eval()}
    with torch.no_grad():
        for size in ((64, 96), (128, 96), (64, 192), (128, 288)):
            found = [model(image_batch([size], 5))[0]["sem_seg"] for model in segmentors]
            assert torch.equal(*found), size


@needs_detectron2
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_equal(name: str) -> None:
    ours, theirs = (backbone_results(runtime, name, BACKBONES[name]) for runtime in ("lite", "detectron2"))
    assert largest_difference(ours, theirs) == 0


@needs_detectron2
def test_weights_load_from_one_into_the_other() -> None:
    model = MODELS["Panoptic-DeepLab R-52"]
    ours, theirs = (build(runtime, config(runtime, model)) for runtime in ("lite", "detectron2"))
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
