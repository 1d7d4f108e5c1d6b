"""Mask2Former as a meta-architecture: targets, losses, scores, precision, copies, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

import hicl_d2.modeling.models  # noqa: F401 - registers models
from hicl_d2.command.errors import InputError
from hicl_d2.d2.checkpoint import DetectionCheckpointer
from hicl_d2.d2.modeling import META_ARCH_REGISTRY, build_model
from hicl_d2.d2.utils import Registry
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.mask_former.model import MaskFormer
from hicl_d2.modeling.registration import register_if_free
from tests.modeling.mask_former.models import mask_former_batch, mask_former_cfg

SWIN = "D2SwinTransformer"


def make_model(*args, seed=3, **settings):
    torch.manual_seed(seed)
    return build_model(mask_former_cfg(*args, **settings))


@pytest.fixture(scope="module")
def model():
    return make_model(architecture="HiCLMaskFormer")


@pytest.fixture(scope="module")
def batch():
    return mask_former_batch()


def test_targets_are_one_mask_for_each_class_of_an_image(model):
    batch = mask_former_batch(((64, 96), (96, 64)))
    labels, masks = model.targets(batch)
    for entry, ids, areas in zip(batch, labels, masks, strict=True):
        height, width = entry["sem_seg"].shape
        assert ids.tolist() == sorted(set(entry["sem_seg"].flatten().tolist()) - {255})
        assert areas.shape == (len(ids), 96, 96)
        assert areas.dtype == torch.float32
        for each, area in zip(ids, areas, strict=True):
            assert torch.equal(area[:height, :width].bool(), entry["sem_seg"] == each)
        assert areas.sum() == (entry["sem_seg"] != 255).sum()


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", SWIN])
def test_every_parameter_is_trained_also_by_a_batch_without_labels(backbone, batch):
    model = make_model(backbone)
    empty = [{**entry, "sem_seg": torch.full_like(entry["sem_seg"], 255)} for entry in batch]
    for inputs in (batch, empty):
        model.zero_grad(set_to_none=True)
        losses = model(inputs)
        assert len(losses) == 30
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
        assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_without_deep_supervision_the_last_layer_alone_has_losses(batch):
    assert list(make_model(DEEP_SUPERVISION=False)(batch)) == ["loss_ce", "loss_mask", "loss_dice"]


def test_the_weights_of_the_losses_multiply_them(batch):
    losses = []
    for weight in (2.0, 4.0):
        model = make_model(CLASS_WEIGHT=weight)
        model.criterion.matcher.cost_class = 2.0  # the matching stays
        torch.manual_seed(0)
        losses.append({name: loss.item() for name, loss in model(batch).items()})
    assert losses[1]["loss_ce_3"] == pytest.approx(2 * losses[0]["loss_ce_3"])
    assert losses[1]["loss_dice_3"] == pytest.approx(losses[0]["loss_dice_3"])


def test_masks_resized_before_the_sum_give_nearly_the_same_scores(batch):
    plain, resized = make_model(), make_model()
    resized.resize_masks = True
    with torch.no_grad():
        a, b = plain.eval()(batch)[0]["sem_seg"], resized.eval()(batch)[0]["sem_seg"]
    assert a.shape == b.shape == (7, 90, 131)
    assert 0 < (a - b).abs().max() < 0.2


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", SWIN])
def test_under_autocast_pixel_decoder_and_losses_stay_in_float32(backbone, batch):
    model = make_model(backbone)
    seen = []
    model.sem_seg_head.pixel_decoder.mask_features.register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert seen == [torch.float32]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", SWIN])
def test_a_copy_is_independent_and_follows_moves_and_modes(backbone, batch):
    model = make_model(backbone)
    twin = copy.deepcopy(model).double().float().eval()
    model.eval()
    with torch.no_grad():
        expected = model(batch)[0]["sem_seg"]
        assert torch.equal(twin(batch)[0]["sem_seg"], expected)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(batch)[0]["sem_seg"], expected)
        assert not torch.equal(model(batch)[0]["sem_seg"], expected)


def test_dropout_and_left_out_paths_are_silent_in_evaluation(batch):
    cfg = mask_former_cfg(SWIN, DROPOUT=0.5)
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.9
    torch.manual_seed(0)
    model = build_model(cfg)
    images = torch.randn(1, 3, 64, 64)
    for mode, equal in ((True, False), (False, True)):
        model.train(mode)
        with torch.no_grad():
            first, second = (model.backbone(images)["res5"] for _ in range(2))
            features = model.eval().backbone(images)
            model.train(mode)
            masks, again = (model.sem_seg_head(features)["pred_masks"] for _ in range(2))
        assert torch.equal(first, second) is equal
        assert torch.equal(masks, again) is equal


def test_activations_computed_again_give_the_same_gradients(batch):
    gradients = []
    for again in (False, True):
        cfg = mask_former_cfg(SWIN)
        cfg.MODEL.SWIN.USE_CHECKPOINT = again
        torch.manual_seed(0)
        model = build_model(cfg)
        torch.manual_seed(1)
        sum(model(batch).values()).backward()
        gradients.append(model.backbone.get_submodule("layers.0.blocks.0.attn.qkv").weight.grad)
    torch.testing.assert_close(*gradients)


def test_another_number_of_queries_and_classes_loads_all_the_rest(tmp_path):
    model = make_model(NUM_OBJECT_QUERIES=20)
    DetectionCheckpointer(make_model(seed=4), str(tmp_path)).save("small")
    found = DetectionCheckpointer(model)._load_model(torch.load(tmp_path / "small.pth"))
    assert {name for name, *_ in found.incorrect_shapes} == {
        "sem_seg_head.predictor.query_feat.weight",
        "sem_seg_head.predictor.query_embed.weight",
    }
    assert not found.unexpected_keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"PIXEL_DECODER_NAME": "BasePixelDecoder"},
            "PIXEL_DECODER_NAME .* offered here is 'MSDeformAttnPixelDecoder'",
        ),
        ({"TRANSFORMER_IN_FEATURE": "res5"}, "TRANSFORMER_IN_FEATURE .* 'multi_scale_pixel_decoder'"),
        ({"IN_FEATURES": ["res3", "res4", "res6"]}, "IN_FEATURES names res6; what it can name here: res2"),
        ({"IN_FEATURES": ["res2", "res3", "res4"]}, "must be the three coarsest of IN_FEATURES"),
        ({"COMMON_STRIDE": 8}, r"COMMON_STRIDE is 8 and IN_FEATURES have the strides \[4, 8, 16, 32\]"),
        ({"CONVS_DIM": 60}, "CONVS_DIM is 60; it must be divisible by 8 .*NHEADS"),
        ({"HIDDEN_DIM": 100}, "HIDDEN_DIM is 100; it must be divisible by 8"),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 4}, "N_HEADS is 4 and MODEL.MASK_FORMER.NHEADS 8"),
        ({"DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 8}, "N_POINTS is 8; what is offered here is 4"),
        ({"DEC_LAYERS": 0}, "DEC_LAYERS is 0; it must be 1 or more"),
        ({"NAME": "SemSegFPNHead"}, "MaskFormer needs MaskFormerHead"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        check_model_config(mask_former_cfg(**settings))
    assert "\n" not in str(error.value)


def test_panoptic_output_and_other_mappers_are_refused():
    cfg = mask_former_cfg()
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    with pytest.raises(InputError, match="PANOPTIC_ON is True; what is offered here is False"):
        check_model_config(cfg)
    cfg = mask_former_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    with pytest.raises(InputError, match="DATASET_MAPPER_NAME is 'coco_panoptic_lsj'"):
        check_model_config(cfg)


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", SWIN])
def test_a_good_config_passes_the_check(backbone):
    check_model_config(mask_former_cfg(backbone))


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_projects_registration_of_a_name_wins_whichever_comes_first(first):
    registry = Registry("TEST")
    steps = {
        "theirs": lambda: registry._do_register("Model", int),
        "ours": lambda: register_if_free(registry, str, "Model"),
    }
    steps.pop(first)()
    steps.popitem()[1]()
    assert registry.get("Model") is int
    with pytest.raises(AssertionError, match="already registered"):
        registry._do_register("Model", float)


def test_both_names_build_the_same_model_where_the_original_is_not_imported():
    if META_ARCH_REGISTRY.get("MaskFormer").__module__.startswith("mask2former"):
        pytest.skip("the original is imported here")
    assert META_ARCH_REGISTRY.get("MaskFormer") is META_ARCH_REGISTRY.get("HiCLMaskFormer")
    assert issubclass(MaskFormer, nn.Module)
