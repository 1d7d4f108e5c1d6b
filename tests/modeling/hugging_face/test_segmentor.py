"""Segmentation models of transformers: losses and logits are transformers' own, classes are replaced, Hi-CL attaches."""

import json

import pytest
import torch
import torch.nn.functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.modeling import build_model
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.optimizer import parameter_groups
from hicl_d2.modeling.check import check_model_config
from tests.support.norms import adjust_norms

NARROW_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
}
CONVNEXT = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Settings of a small model of each type, and the module that the branch reads.
MODELS = {
    "segformer": (
        {
            "depths": [1] * 4,
            "hidden_sizes": [8, 16, 16, 32],
            "decoder_hidden_size": 16,
            "num_attention_heads": [1, 2, 2, 4],
        },
        "model.decode_head.classifier",
    ),
    "beit": ({**NARROW_VIT, "out_indices": [1, 2, 3, 4]}, "model.decode_head.classifier"),
    "dpt": (
        {
            **NARROW_VIT,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8] * 4,
            "fusion_hidden_size": 8,
        },
        "model.head.head.4",
    ),
    "mobilevit": (
        {
            "hidden_sizes": [8, 16, 16],
            "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32],
            "num_attention_heads": 2,
            "aspp_out_channels": 16,
        },
        "model.segmentation_head.classifier.convolution",
    ),
    "upernet": (
        {
            "backbone_config": {**CONVNEXT, "out_features": STAGES},
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 16,
        },
        "model.decode_head.classifier",
    ),
}
CLASSES = 5


def make_cfg(name, *, with_branch=False, **settings):
    cfg = get_hicl_cfg()
    cfg.SEED, cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = 3, "cpu", "RGB"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "TransformersSegmentor", CLASSES
    own, feature = MODELS.get(name, ({}, "model.decode_head.classifier"))
    cfg.MODEL.TRANSFORMERS.NAME = name
    for key, value in {**own, **settings}.items():
        cfg.MODEL.TRANSFORMERS.SETTINGS[key] = value
    if with_branch:
        hicl = cfg.MODEL.HICL
        cfg.MODEL.META_ARCHITECTURE, hicl.BASE = "HiCL", "TransformersSegmentor"
        hicl.FEATURE = hicl.LOGITS = feature
        hicl.IMAGE, hicl.WARMUP_ITERS, hicl.WINDOWS = "model", 0, [1, 2]
        hicl.ANCHORS = hicl.COMPONENTS = 64
        hicl.DIM = hicl.HIDDEN_DIM = 8
    return cfg


def make_batch(*sizes):
    generator = torch.Generator().manual_seed(1)
    batch = []
    for height, width in sizes or ((64, 64), (64, 64)):
        labels = torch.zeros(height, width, dtype=torch.long)
        labels[: height // 2], labels[:, -8:] = 3, 255
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        batch.append({"image": image, "sem_seg": labels, "height": height, "width": width})
    return batch


def built(cfg, seed=7):
    check_model_config(cfg)
    torch.manual_seed(seed)
    return build_model(cfg)


def normalised(model, batch):
    return torch.stack([(entry["image"] - model.pixel_mean) / model.pixel_std for entry in batch])


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_logits_are_those_of_transformers(name):
    model, batch = built(make_cfg(name)), make_batch()
    torch.manual_seed(5)
    ours = model.train()(batch)
    labels = torch.stack([entry["sem_seg"] for entry in batch])
    torch.manual_seed(5)
    theirs = model.model(pixel_values=normalised(model, batch), labels=labels)
    assert ours.keys() == {"loss_sem_seg"}
    assert torch.equal(ours["loss_sem_seg"], theirs.loss)
    with torch.no_grad():
        scores = model.eval()(batch)
        logits = model.model(pixel_values=normalised(model, batch)).logits
    expected = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    for entry, wanted in zip(scores, expected, strict=True):
        torch.testing.assert_close(entry["sem_seg"], wanted)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_that_is_trained_gets_a_gradient_with_and_without_the_branch(name):
    for with_branch in (False, True):
        model = built(make_cfg(name, with_branch=with_branch)).train()
        losses = model(make_batch())
        assert set(losses) == ({"loss_sem_seg", "loss_hicl"} if with_branch else {"loss_sem_seg"})
        sum(losses.values()).backward()
        missing = [
            key for key, value in model.named_parameters() if value.requires_grad and value.grad is None
        ]
        assert not missing
        if with_branch:
            assert losses["loss_hicl"] > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_branch_leaves_the_plain_model_as_it_is(name):
    plain, twin = built(make_cfg(name)), built(make_cfg(name, with_branch=True))
    state = twin.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    batch = make_batch()
    with torch.no_grad():
        one, other = plain.eval()(batch), twin.eval()(batch)
    assert torch.equal(one[0]["sem_seg"], other[0]["sem_seg"])


@pytest.mark.parametrize("name", ["segformer", "beit", "mobilevit", "upernet"])
def test_images_of_other_sizes_are_padded_and_predicted_at_their_own(name):
    model = built(make_cfg(name))
    with torch.no_grad():
        scores = model.eval()(make_batch((70, 50)))
    assert scores[0]["sem_seg"].shape == (CLASSES, 70, 50)
    loss = model.train()(make_batch((70, 50), (64, 64)))["loss_sem_seg"]
    assert torch.isfinite(loss)


@pytest.mark.parametrize("stride", [8, 16])
def test_a_model_with_tensorflow_s_padding_reads_an_image_as_one_padded_to_its_stride(stride):
    small = {"depth_multiplier": 0.1, "min_depth": 4, "finegrained_output": False, "output_stride": stride}
    cfg = make_cfg("mobilenet_v2", **small)
    model = built(cfg)
    adjust_norms(model, lambda: model.model(pixel_values=torch.randn(4, 3, 64, 64)))
    (entry,) = make_batch((37, 50))
    rows, columns = (-(-side // stride) * stride for side in (37, 50))
    padded = model.pixel_mean.expand(3, rows, columns).clone()
    padded[:, :37, :50] = entry["image"]
    with torch.no_grad():
        found = model([entry])[0]["sem_seg"]
        whole = model([{"image": padded}])[0]["sem_seg"]
    assert found.std() > 1e-3
    torch.testing.assert_close(found, whole[:, :37, :50])


def test_a_model_of_one_size_names_it():
    model = built(make_cfg("dpt"))
    with pytest.raises(InputError, match=r"64 x 64 pixels, not 96 x 64: set INPUT\.CROP\.SIZE"):
        model.train()(make_batch((96, 64)))


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_a_folder_brings_its_weights_and_the_classes_are_replaced(classes, tmp_path):
    from transformers import AutoConfig, SegformerForSemanticSegmentation

    torch.manual_seed(1)
    saved = SegformerForSemanticSegmentation(
        AutoConfig.for_model("segformer", num_labels=classes, **MODELS["segformer"][0])
    )
    saved.save_pretrained(tmp_path)
    model = built(make_cfg(str(tmp_path)))
    state = model.model.state_dict()
    same = {
        key
        for key, value in saved.state_dict().items()
        if state[key].shape == value.shape and torch.equal(state[key], value)
    }
    other = set(saved.state_dict()) - same
    assert other == (
        set() if classes == CLASSES else {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    )
    assert state["decode_head.classifier.weight"].shape[0] == CLASSES


def test_weights_of_an_encoder_alone_are_read_from_a_folder(tmp_path):
    from transformers import AutoConfig, SegformerForImageClassification

    torch.manual_seed(1)
    saved = SegformerForImageClassification(AutoConfig.for_model("segformer", **MODELS["segformer"][0]))
    saved.save_pretrained(tmp_path)
    model = built(make_cfg("segformer", with_branch=True))
    before = model.model.decode_head.classifier.weight.clone()
    Checkpoints(model).load_weights(str(tmp_path), whole=False)
    state = model.model.state_dict()
    assert all(
        torch.equal(state[f"segformer.{key}"], value) for key, value in saved.segformer.state_dict().items()
    )
    assert torch.equal(state["decode_head.classifier.weight"], before)


def test_the_images_must_be_prepared_as_the_folder_says(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model("segformer", **MODELS["segformer"][0]).save_pretrained(tmp_path)
    said = {
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    cfg = make_cfg(str(tmp_path))
    with pytest.raises(
        InputError, match=r"MODEL\.PIXEL_MEAN .* was trained with \[123\.675, 116\.28, 103\.53\]"
    ):
        check_model_config(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    check_model_config(cfg)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(InputError, match="was trained with RGB"):
        check_model_config(cfg)


def test_the_head_learns_faster_than_the_encoder():
    cfg = make_cfg("segformer")
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0, 0.1
    model = built(cfg)
    names = {id(value): key for key, value in model.named_parameters()}
    for group in parameter_groups(cfg, model):
        for value in group["params"]:
            expected = 0.1 if names[id(value)].startswith("model.segformer.") else 1.0
            assert group["lr"] == expected


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("segfomer", {}, r"did you mean segformer\?"),
        ("convnext", {}, "it must be a folder or one of"),
        ("segformer", {"dephts": [1, 1, 1, 1]}, r"has no dephts; did you mean depths\?"),
        ("segformer", {"depths": "many"}, "cannot be configured"),
    ],
)
def test_what_transformers_does_not_have_is_said_in_one_line(name, settings, message):
    with pytest.raises(InputError, match=message) as error:
        check_model_config(make_cfg(name, **settings))
    assert "\n" not in str(error.value)
