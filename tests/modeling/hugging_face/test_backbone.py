"""Backbones of transformers: strides and channels as they are, weights by name, and what is refused."""

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.modeling import build_backbone, build_model
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.modeling.check import check_model_config
from tests.modeling.attach_cases import case_batch
from tests.modeling.mask_former.models import mask_former_cfg

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TYPES = {
    "resnet": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 32, 64],
        "embedding_size": 8,
        "layer_type": "basic",
    },
    "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]},
    "swin": {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 2, 4, 8]},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2},
    "segformer": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 32, 64],
        "num_attention_heads": [1, 2, 4, 8],
    },
}


def make_cfg(name, settings=None, features=STAGES):
    cfg = mask_former_cfg("build_transformers_backbone")
    cfg.MODEL.TRANSFORMERS.NAME, cfg.MODEL.TRANSFORMERS.OUT_FEATURES = name, features
    for key, value in (settings if settings is not None else TYPES.get(name, {})).items():
        cfg.MODEL.TRANSFORMERS.SETTINGS[key] = value
    return cfg


@pytest.mark.parametrize("name", TYPES)
def test_channels_and_strides_are_those_of_its_features_and_every_parameter_is_used(name):
    torch.manual_seed(0)
    backbone = build_backbone(make_cfg(name))
    shapes = backbone.output_shape()
    assert list(shapes) == STAGES
    side = 2 * backbone.size_divisibility
    features = backbone(torch.randn(2, 3, side, 2 * side))
    for stage, feature in features.items():
        stride = shapes[stage].stride
        assert feature.shape == (2, shapes[stage].channels, side // stride, 2 * side // stride)
    expected = [14] * 4 if name == "dinov2" else [4, 8, 16, 32]
    assert [shape.stride for shape in shapes.values()] == expected
    sum(feature.sum() for feature in features.values()).backward()
    trained = [value for value in backbone.parameters() if value.requires_grad]
    assert all(value.grad is not None for value in trained)
    assert len(trained) > 10


def test_building_one_leaves_parameters_without_gradients_and_no_trace_in_the_random_state():
    torch.manual_seed(0)
    backbone = build_backbone(make_cfg("resnet"))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    from transformers import AutoBackbone, AutoConfig

    config = AutoConfig.for_model("resnet", **TYPES["resnet"])
    config.out_features = STAGES
    plain = AutoBackbone.from_config(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), backbone.state_dict().values(), strict=True)
    )
    assert all(value.grad is None for value in backbone.parameters())


@pytest.mark.parametrize("name", ["convnext", "segformer"])
def test_mask2former_trains_on_it(name):
    cfg = make_cfg(name)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = STAGES
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = STAGES[1:]
    check_model_config(cfg)
    model = build_model(cfg)
    sum(model(case_batch()).values()).backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("name", ["convnext", "swin", "segformer"])
def test_the_weights_of_a_hugging_face_folder_are_all_used(name, tmp_path):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    saved = AutoModel.from_config(AutoConfig.for_model(name, **TYPES[name]))
    saved.save_pretrained(tmp_path)
    holder = nn.Module()
    torch.manual_seed(2)
    holder.backbone = build_backbone(make_cfg(str(tmp_path), {}))
    checkpoints = Checkpoints(holder)
    checkpoints.load_weights(str(tmp_path), whole=False)
    assert checkpoints.fit.fitting >= 0.8 * checkpoints.fit.in_model
    found = {
        key: value
        for key, expected in saved.state_dict().items()
        for name, value in holder.state_dict().items()
        if name.endswith(f".{key}") and torch.equal(value, expected)
    }
    assert len(found) >= 0.9 * len(saved.state_dict())


def test_a_safetensors_file_loads_and_says_what_was_left(tmp_path, capsys):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = nn.Module()
    model.backbone = build_backbone(make_cfg("resnet"))
    weights = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    weights["classifier.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "weights.safetensors")
    torch.manual_seed(2)
    other = nn.Module()
    other.backbone, other.head = build_backbone(make_cfg("resnet")), nn.Linear(2, 2)
    Checkpoints(other).load_weights(str(tmp_path / "weights.safetensors"), whole=False)
    assert all(
        torch.equal(other.backbone.state_dict()[key], value)
        for key, value in model.backbone.state_dict().items()
    )
    assert "2 are missing, 0 have another shape, 1 of the file are left over" in capsys.readouterr().err


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    torch.save({"model": {"something": torch.ones(2)}}, tmp_path / "other.pth")
    model = nn.Module()
    model.backbone = build_backbone(make_cfg("resnet"))
    with pytest.raises(InputError, match=r"weights .* are of another model: 0 of the model's"):
        Checkpoints(model).load_weights(str(tmp_path / "other.pth"), whole=False)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a Hugging Face folder holds config.json and model.safetensors"):
        Checkpoints(nn.Linear(1, 1)).load_weights(str(tmp_path), whole=False)


@pytest.mark.parametrize(
    ("name", "settings", "features", "message"),
    [
        ("convnet", {}, STAGES, r"NAME is 'convnet'; did you mean convnext\?; it must be a folder or one of"),
        (
            "convnext",
            {"hidden_size": [1]},
            STAGES,
            r"convnext has no hidden_size; did you mean hidden_sizes\?",
        ),
        (
            "convnext",
            {"depths": [1, 1, 1, 1]},
            ["res2"],
            "OUT_FEATURES names res2; what convnext has here: stem, stage1",
        ),
        ("segformer", {}, [], "OUT_FEATURES is empty; what segformer has here: stage1"),
        ("swin", {"depths": "many"}, STAGES, "swin cannot be configured"),
    ],
)
def test_what_transformers_does_not_have_is_said_in_one_line(name, settings, features, message):
    with pytest.raises(InputError, match=message) as error:
        build_backbone(make_cfg(name, settings, features))
    assert "\n" not in str(error.value)


def test_a_head_that_needs_other_strides_says_so():
    cfg = make_cfg("dinov2")
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = STAGES
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = STAGES[1:]
    with pytest.raises(
        InputError, match=r"COMMON_STRIDE is 4 and IN_FEATURES have the strides \[14, 14, 14, 14\]"
    ):
        build_model(cfg)
