"""Registries, ResNets, FPN and the segmentor of the built-in runtime."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.lite.config import get_cfg
from hicl_d2.lite.layers import FrozenBatchNorm2d, ShapeSpec
from hicl_d2.lite.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    ResNet,
    build_backbone,
    build_model,
)
from hicl_d2.lite.modeling.backbone.fpn import FPN
from hicl_d2.lite.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from hicl_d2.lite.modeling.meta_arch.semantic_seg import SemanticSegmentor, SemSegFPNHead
from hicl_d2.lite.modeling.postprocessing import sem_seg_postprocess

# Parameters without the classifier, as counted for the networks of the paper.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def resnet_cfg(depth=18, **settings):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in settings.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def small_resnet(**kwargs):
    torch.manual_seed(0)
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=8, out_channels=8, stride=1),
        ResNet.make_stage(BasicBlock, 2, in_channels=8, out_channels=16, stride_per_block=[2, 1]),
        ResNet.make_stage(BasicBlock, 1, in_channels=16, out_channels=16, stride=1),
    ]
    return ResNet(BasicStem(3, 8), stages, **kwargs)


def segmentor(head_norm="GN"):
    cfg = resnet_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.CONVS_DIM, head.NORM = 5, 32, head_norm
    torch.manual_seed(0)
    return build_model(cfg)


def batch(*sizes):
    entries = []
    for index, (height, width) in enumerate(sizes):
        label = torch.full((height, width), index % 5)
        label[:4] = 255
        image = (40 * numbers(3, height, width, seed=index) + 128).clamp(0, 255).to(torch.uint8)
        entries.append({"image": image, "sem_seg": label})
    return entries


@pytest.mark.parametrize("depth", PARAMETERS)
def test_resnets_have_as_many_parameters_as_the_paper_s(depth):
    with torch.device("meta"):
        backbone = build_backbone(resnet_cfg(depth))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == PARAMETERS[depth]
    wide = 1 if depth < 50 else 4
    shapes = {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()}
    assert shapes == {f"res{n}": (wide << (n + 4), 1 << n) for n in (2, 3, 4, 5)}


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_stride_of_a_bottleneck_is_in_the_convolution_that_is_asked_for(stride_in_1x1):
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, stride_in_1x1=stride_in_1x1)
    assert block.conv1.stride == ((2, 2) if stride_in_1x1 else (1, 1))
    assert block.conv2.stride == ((1, 1) if stride_in_1x1 else (2, 2))
    assert block(numbers(1, 8, 6, 6)).shape == (1, 16, 3, 3)


def test_a_block_adds_its_input_to_two_convolutions():
    torch.manual_seed(0)
    block = BasicBlock(4, 4).eval()
    x = numbers(1, 4, 5, 5)
    residual = block.conv2(block.conv1(x).clamp(min=0))
    torch.testing.assert_close(block(x), (x + residual).clamp(min=0))
    assert block.shortcut is None


def test_dilation_keeps_the_stride():
    cfg = resnet_cfg(50, RES5_DILATION=2, OUT_FEATURES=["res5"])
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert backbone.output_shape()["res5"].stride == 16
    assert {block.conv2.dilation for block in backbone.res5} == {(2, 2)}


def test_stages_that_nobody_reads_are_not_kept():
    net = small_resnet(out_features=["stem", "res2"])
    assert [name for name, _ in net.named_children()] == ["stem", "res2"]
    features = net(numbers(1, 3, 32, 32))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "stem": (1, 8, 8, 8),
        "res2": (1, 8, 8, 8),
    }


def test_without_out_features_the_last_layer_is_given_out():
    assert list(small_resnet()(numbers(1, 3, 32, 32))) == ["res4"]


@pytest.mark.parametrize("names", [["res9"], [], ["res2", "linear"]])
def test_features_that_a_resnet_does_not_have_are_named(names):
    with pytest.raises(InputError, match="the ResNet has the features stem, res2"):
        small_resnet(out_features=names)


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3, 5])
def test_freezing_stops_the_first_stages(freeze_at):
    net = small_resnet(freeze_at=freeze_at)
    parts = [net.stem, net.res2, net.res3, net.res4]
    frozen = [not any(parameter.requires_grad for parameter in part.parameters()) for part in parts]
    assert frozen == [index < freeze_at for index in range(4)]
    kinds = [any(isinstance(module, nn.BatchNorm2d) for module in part.modules()) for part in parts]
    assert kinds == [not is_frozen for is_frozen in frozen]
    assert isinstance(net.stem.conv1.norm, FrozenBatchNorm2d) == (freeze_at > 0)


def test_lists_per_block_must_fit():
    channels = {"in_channels": 4, "out_channels": 4}
    with pytest.raises(AssertionError, match="must have 2 entries"):
        ResNet.make_stage(BasicBlock, 2, stride_per_block=[1], **channels)
    with pytest.raises(AssertionError, match="both stride"):
        ResNet.make_stage(BasicBlock, 1, stride_per_block=[1], stride=1, **channels)


@pytest.mark.parametrize(
    ("depth", "settings", "message"),
    [
        (20, {}, "DEPTH is 20; .* 18 or 34 or 50 or 101 or 152"),
        (18, {"RES2_OUT_CHANNELS": 256}, "RES2_OUT_CHANNELS is 256; for DEPTH 18 it must be 64"),
        (18, {"RES5_DILATION": 2}, "RES5_DILATION is 2; for DEPTH 18 it must be 1"),
        (50, {"RES5_DILATION": 4}, "RES5_DILATION is 4; .* 1 or 2"),
        (34, {"NUM_GROUPS": 2}, "NUM_GROUPS is 2"),
        (
            50,
            {"DEFORM_ON_PER_STAGE": [False, True, False, False]},
            "DEFORM_ON_PER_STAGE: this needs Detectron2",
        ),
        (50, {"NORM": "GroupNorm"}, "unknown norm 'GroupNorm'"),
    ],
)
def test_resnet_settings_that_do_not_go_together_are_one_line(depth, settings, message):
    with pytest.raises(InputError, match=message) as caught, torch.device("meta"):
        build_backbone(resnet_cfg(depth, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_the_pyramid_adds_upsampled_levels(fuse_type):
    bottom_up = small_resnet(out_features=["res2", "res3"])
    fpn = FPN(bottom_up, ["res2", "res3"], 6, fuse_type=fuse_type)
    x = numbers(1, 3, 32, 48)
    features = bottom_up.eval()(x)
    coarse = fpn.fpn_lateral3(features["res3"])
    fine = fpn.fpn_lateral2(features["res2"]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = fine / 2 if fuse_type == "avg" else fine
    found = fpn.eval()(x)
    assert list(found) == ["p2", "p3"]
    torch.testing.assert_close(found["p3"], fpn.fpn_output3(coarse))
    torch.testing.assert_close(found["p2"], fpn.fpn_output2(fine))
    assert fpn.size_divisibility == 8


def test_the_top_level_is_every_second_pixel():
    model = segmentor()
    with torch.no_grad():
        found = model.backbone(numbers(1, 3, 64, 64))
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    assert torch.equal(found["p6"], found["p5"][..., ::2, ::2])
    shapes = {name: (shape.channels, shape.stride) for name, shape in model.backbone.output_shape().items()}
    assert shapes == {f"p{n}": (16, 2**n) for n in (2, 3, 4, 5, 6)}


def test_a_pyramid_on_features_that_are_not_there_is_one_line():
    with pytest.raises(InputError, match=r"gives out res2; MODEL.FPN.IN_FEATURES: \['res3'\]"):
        FPN(small_resnet(out_features=["res2"]), ["res3"], 4)


def test_losses_count_neither_ignored_pixels_nor_padding():
    model = segmentor()
    entries = batch((64, 40), (48, 64))
    torch.manual_seed(1)
    loss = model(entries)["loss_sem_seg"]
    torch.manual_seed(1)
    images = torch.zeros(2, 3, 64, 64)
    for image, entry in zip(images, entries, strict=True):
        height, width = entry["image"].shape[1:]
        image[:, :height, :width] = (entry["image"] - model.pixel_mean) / model.pixel_std
    logits = F.interpolate(
        model.sem_seg_head.layers(model.backbone(images)),
        scale_factor=4,
        mode="bilinear",
        align_corners=False,
    )
    total, count = 0.0, 0
    for index, entry in enumerate(entries):
        height, width = entry["sem_seg"].shape
        score = -logits[index].log_softmax(0)[:, :height, :width]
        valid = entry["sem_seg"] != 255
        total += score[index % 5][valid].sum()
        count += valid.sum()
    torch.testing.assert_close(loss, total / count)


def test_predictions_have_the_size_that_is_asked_for():
    model = segmentor().eval()
    entries = [{"image": entry["image"]} for entry in batch((64, 40), (48, 64))]
    entries[1] |= {"height": 96, "width": 128}
    with torch.no_grad():
        outputs = model(entries)
        alone = model(entries[1:])
    assert [tuple(output["sem_seg"].shape) for output in outputs] == [(5, 64, 40), (5, 96, 128)]
    assert alone[0]["sem_seg"].shape == (5, 96, 128)


def test_normalisation_is_not_in_checkpoints():
    assert not [key for key in segmentor().state_dict() if key.startswith("pixel_")]


@pytest.mark.parametrize("make_twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_works_on_its_own(make_twin):
    model = segmentor().eval()
    twin = make_twin(model)
    entries = batch((64, 64))
    with torch.no_grad():
        expected = model(entries)[0]["sem_seg"]
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(entries)[0]["sem_seg"], expected)


def test_heads_upsample_from_each_level_to_the_common_stride():
    shapes = {"b": ShapeSpec(channels=6, stride=16), "a": ShapeSpec(channels=3, stride=4)}
    head = SemSegFPNHead(shapes, num_classes=5, conv_dims=8, common_stride=4, norm="").eval()
    assert head.in_features == ["a", "b"]
    assert [len(head.a), len(head.b)] == [1, 4]
    logits, losses = head({"a": numbers(1, 3, 16, 24), "b": numbers(1, 6, 4, 6)})
    assert logits.shape == (1, 5, 64, 96)
    assert losses == {}
    with pytest.raises(ValueError, match="at least one feature"):
        SemSegFPNHead({}, num_classes=5, conv_dims=8, common_stride=4)


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (5, 7), (13, 4)])
def test_predictions_are_cut_and_resized(size):
    logits = numbers(3, 8, 8)
    cut = logits[None, :, :6, :8]
    expected = F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
    found = sem_seg_postprocess(logits, (6, 8), *size)
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_registered_names_are_built_from_the_config():
    @BACKBONE_REGISTRY.register()
    class Tiny(Backbone):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.conv = nn.Conv2d(input_shape.channels, 4, 4, 4)
            self._out_features = ["x"]
            self._out_feature_channels, self._out_feature_strides = {"x": 4}, {"x": 4}

        def forward(self, x):
            return {"x": self.conv(x)}

    try:
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME = "Tiny"
        backbone = build_backbone(cfg)
        assert backbone.output_shape() == {"x": ShapeSpec(channels=4, stride=4)}
        assert backbone.size_divisibility == 0
        assert backbone.conv.in_channels == len(cfg.MODEL.PIXEL_MEAN)
    finally:
        BACKBONE_REGISTRY._obj_map.pop("Tiny")


def test_only_a_backbone_counts_as_one():
    BACKBONE_REGISTRY._do_register("not_a_backbone", lambda cfg, shape: nn.Identity())
    try:
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME = "not_a_backbone"
        with pytest.raises(AssertionError, match="no Backbone"):
            build_backbone(cfg)
    finally:
        BACKBONE_REGISTRY._obj_map.pop("not_a_backbone")


def test_a_segmentor_can_be_made_without_a_config():
    backbone = small_resnet(out_features=["res2"])
    head = SemSegFPNHead(
        backbone.output_shape(), num_classes=5, conv_dims=8, common_stride=4, norm="", ignore_value=255
    )
    model = SemanticSegmentor(backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    assert model.device.type == "cpu"
    assert torch.isfinite(model(batch((32, 32)))["loss_sem_seg"])
    assert "SemanticSegmentor" in META_ARCH_REGISTRY
