"""DeepLab's heads: shapes, decoder, pooling on small and large maps, losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.d2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from hicl_d2.modeling.deeplab.head import DeepLabV3Head, DeepLabV3PlusHead
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy
from hicl_d2.modeling.panoptic_deeplab.head import PanopticDeepLabSemSegHead
from tests.modeling.deeplab.models import DEEPLAB_HEADS, deeplab_cfg, make_batch

OURS = {cls.__name__: cls for cls in (DeepLabV3Head, DeepLabV3PlusHead, PanopticDeepLabSemSegHead)}
CHANNELS = {"res2": 8, "res3": 16, "res5": 64}
STRIDES = {"res2": 4, "res3": 8, "res5": 16}


def make_head(name="DeepLabV3PlusHead", **settings):
    cfg = deeplab_cfg(name, **settings)
    shapes = {f: ShapeSpec(channels=CHANNELS[f], stride=STRIDES[f]) for f in CHANNELS}
    torch.manual_seed(0)
    return OURS[name](cfg, shapes)


def make_features(height, width, batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(
            batch, CHANNELS[name], -(-height // stride), -(-width // stride), generator=generator
        )
        for name, stride in STRIDES.items()
    }


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_heads_are_registered_in_place_of_detectron2s(name):
    assert SEM_SEG_HEADS_REGISTRY.get(name) is OURS[name]


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
@pytest.mark.parametrize("separable", [False, True])
def test_logits_have_the_size_of_the_image(name, separable):
    head = make_head(name, USE_DEPTHWISE_SEPARABLE_CONV=separable).eval()
    logits, losses = head(make_features(64, 96))
    assert logits.shape == (2, 4, 64, 96)
    assert losses == {}


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_in_training_a_head_gives_one_loss_and_every_parameter_a_gradient(name):
    head = make_head(name)
    labels = torch.stack([entry["sem_seg"] for entry in make_batch((64, 96), (64, 96))])
    nothing, losses = head(make_features(64, 96), labels)
    assert nothing is None
    assert list(losses) == ["loss_sem_seg"]
    losses["loss_sem_seg"].backward()
    assert [key for key, parameter in head.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_the_loss_is_that_of_the_upsampled_logits(name):
    head = make_head(name, LOSS_WEIGHT=0.5, LOSS_TYPE="cross_entropy", ASPP_DROPOUT=0.0)
    features = make_features(64, 96)
    labels = torch.stack([entry["sem_seg"] for entry in make_batch((64, 96), (64, 96))])
    loss = head(features, labels)[1]["loss_sem_seg"]
    for module in head.modules():  # the same statistics as in training, without training
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    logits, _ = head.eval()(features)
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(logits, labels, ignore_index=255))


def test_losses_by_name_and_share():
    assert isinstance(make_head(LOSS_TYPE="cross_entropy").loss, PixelCrossEntropy)
    mining = make_head(LOSS_TYPE="hard_pixel_mining", LOSS_TOP_K=0.4).loss
    assert isinstance(mining, HardPixelMining)
    assert mining.top_k == 0.2  # LOSS_TOP_K is Panoptic-DeepLab's key
    assert (
        make_head("PanopticDeepLabSemSegHead", LOSS_TYPE="hard_pixel_mining", LOSS_TOP_K=0.4).loss.top_k
        == 0.4
    )


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
@pytest.mark.parametrize("loss", ["cross_entropy", "hard_pixel_mining"])
def test_where_every_pixel_is_ignored_the_loss_is_zero(name, loss):
    head = make_head(name, LOSS_TYPE=loss)
    found = head(make_features(64, 96), torch.full((2, 64, 96), 255))[1]["loss_sem_seg"]
    assert found == 0
    found.backward()
    assert torch.isfinite(head.predictor.weight.grad).all()


def test_the_decoder_joins_from_coarse_to_fine():
    head = make_head(
        "DeepLabV3PlusHead", IN_FEATURES=["res5", "res2", "res3"], PROJECT_CHANNELS=[4, 6]
    ).eval()
    assert head.in_features == ["res2", "res3", "res5"]
    assert list(head.decoder) == ["res2", "res3", "res5"]
    features = make_features(64, 96)
    y = head.decoder["res5"]["project_conv"](features["res5"])
    for name, channels in (("res3", 6), ("res2", 4)):
        projected = head.decoder[name]["project_conv"](features[name])
        assert projected.shape[1] == channels
        y = F.interpolate(y, size=projected.shape[-2:], mode="bilinear", align_corners=False)
        y = head.decoder[name]["fuse_conv"](torch.cat([projected, y], 1))
    torch.testing.assert_close(head.layers(features), head.predictor(y))


def test_without_classes_the_decoder_s_feature_is_given_out():
    shapes = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in ("res2", "res5")}
    head = DeepLabV3PlusHead(
        shapes,
        project_channels=[4],
        aspp_dilations=[1, 2, 3],
        aspp_dropout=0.0,
        decoder_channels=[12, 16],
        common_stride=4,
        norm="BN",
        train_size=None,
    )
    assert head(make_features(64, 96)).shape == (2, 12, 16, 24)
    assert not hasattr(head, "predictor")


def test_weights_of_pixels_reach_the_loss():
    head = make_head("PanopticDeepLabSemSegHead", ASPP_DROPOUT=0.0).train()
    features, labels = make_features(64, 96), torch.zeros(2, 64, 96, dtype=torch.long)
    whole = head(features, labels, torch.full((2, 64, 96), 3.0))[1]["loss_sem_seg"]
    torch.testing.assert_close(whole, 3 * head(features, labels)[1]["loss_sem_seg"])


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_a_larger_test_image_pools_over_windows_of_the_crop(name):
    head = make_head(name).eval()
    aspp = head.aspp if name == "DeepLabV3Head" else head.decoder["res5"]["project_conv"]
    seen = []
    aspp.convs[4][0].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[-2:])))
    with torch.no_grad():
        assert head(make_features(128, 96))[0].shape == (2, 4, 128, 96)
        assert head(make_features(64, 96))[0].shape == (2, 4, 64, 96)
    assert seen == [(5, 1), (1, 1)]


def build_seeded(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


ODD_SIZES = [(48, 96), (64, 48), (80, 96), (64, 112), (101, 97), (16, 16), (1, 300), (17, 1)]


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
@pytest.mark.parametrize("crop", [(64, 96), (50, 75), None])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_any_size_trains_and_predicts(name, crop, size):
    model = build_model(deeplab_cfg(name, crop=crop))
    batch = make_batch(size, (40, 72))
    loss = model(batch)["loss_sem_seg"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with torch.no_grad():
        outputs = [model.eval()([entry])[0]["sem_seg"] for entry in batch]
    assert [tuple(output.shape) for output in outputs] == [(4, *size), (4, 40, 72)]
    assert all(torch.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize(
    ("crop", "window"), [((64, 96), (4, 6)), ((50, 75), (4, 5)), ((360, 480), (23, 30)), (None, None)]
)
def test_the_pooling_window_is_a_training_crop_at_the_stride(crop, window):
    pooling = make_head(crop=crop).decoder["res5"]["project_conv"].convs[4][0]
    assert getattr(pooling, "kernel_size", None) == window


@pytest.mark.parametrize("crop_type", ["relative", "relative_range", "absolute_range"])
def test_where_crops_differ_in_size_the_whole_map_is_pooled(crop_type):
    cfg = deeplab_cfg()
    cfg.INPUT.CROP.TYPE = crop_type
    head = DeepLabV3PlusHead(
        cfg, {"res2": ShapeSpec(channels=8, stride=4), "res5": ShapeSpec(channels=64, stride=16)}
    )
    assert isinstance(head.decoder["res5"]["project_conv"].convs[4][0], nn.AdaptiveAvgPool2d)


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_a_model_learns_a_batch_by_heart(name):
    model = build_seeded(
        deeplab_cfg(name, ASPP_DILATIONS=[1, 2, 3], LOSS_TYPE="cross_entropy", ASPP_DROPOUT=0.0)
    )
    batch = make_batch((64, 96))
    batch = [*batch, *batch]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(batch)["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_loss_in_float32(dtype):
    model = build_seeded(deeplab_cfg())
    with torch.autocast("cpu", dtype=dtype):
        loss = model(make_batch((64, 96), (64, 96)))["loss_sem_seg"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", DEEPLAB_HEADS)
def test_scores_lie_class_by_class_in_memory_in_either_layout(name):
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = build_seeded(deeplab_cfg(name, ASPP_DROPOUT=0.0)).eval().to(memory_format=layout)
        with torch.no_grad():
            (output,) = model([{**make_batch((60, 90))[0], "height": 30, "width": 50}])
        assert output["sem_seg"].shape == (4, 30, 50)
        assert output["sem_seg"].is_contiguous()
        found.append(output["sem_seg"])
    torch.testing.assert_close(*found)


def test_training_without_labels_says_so():
    with pytest.raises(AssertionError, match="labels"):
        make_head()(make_features(64, 96))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "DeepLabV3PlusHead",
            {"IN_FEATURES": ["res2", "res6"]},
            "IN_FEATURES names res6; .*: res2, res3, res5",
        ),
        (
            "DeepLabV3PlusHead",
            {"PROJECT_CHANNELS": [4, 8]},
            "PROJECT_CHANNELS is .4, 8.; it must hold one number for each",
        ),
        ("DeepLabV3PlusHead", {"COMMON_STRIDE": 8}, "COMMON_STRIDE is 8, but the finest .* has the stride 4"),
        ("DeepLabV3PlusHead", {"ASPP_DILATIONS": [6, 12]}, "ASPP_DILATIONS is .6, 12.; it must hold 3"),
        ("DeepLabV3PlusHead", {"LOSS_TYPE": "dice"}, "LOSS_TYPE is 'dice'"),
        ("DeepLabV3Head", {"IN_FEATURES": ["res2", "res5"]}, "DeepLabV3Head reads one feature"),
        ("DeepLabV3Head", {"CONVS_DIM": 32}, "CONVS_DIM is 32 and ASPP_CHANNELS 16"),
        ("DeepLabV3Head", {"COMMON_STRIDE": 4}, "COMMON_STRIDE is 4"),
        ("PanopticDeepLabSemSegHead", {"LOSS_TOP_K": 0.0}, "LOSS_TOP_K is 0.0"),
    ],
)
def test_settings_that_do_not_suit_the_backbone_are_one_line(name, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        make_head(name, **settings)
    assert "\n" not in str(caught.value)
