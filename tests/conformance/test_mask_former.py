"""Mask2Former has the names and predictions of the original project, to the last digit, and its losses within rounding.

The original's figures were recorded with its checkout on the Python path, beside Detectron2, on a CPU: two packages that
it imports and that have no part in the figures (its compiled operator, timm) are stood in for.
"""

import functools
import importlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import hicl_d2.modeling.models  # noqa: F401 - registers models
from benchmark.speed.mask2former import has_mask2former, import_mask2former
from hicl_d2.command.safe_yaml import flatten
from hicl_d2.config import add_hicl_config
from hicl_d2.d2.config import add_deeplab_config, get_cfg
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from hicl_d2.evaluation import for_testing
from hicl_d2.modeling.mask_former.model import MaskFormer
from hicl_d2.modeling.swin.backbone import D2SwinTransformer
from tests.conformance.runtimes import HAS_DETECTRON2, golden, plain
from tests.conformance.tensors import assert_close, digest, largest_difference, names
from tests.modeling.mask_former.models import fill, mask_former_batch, mask_former_cfg

BACKBONES = ("build_resnet_backbone", "D2SwinTransformer")
HAS_ORIGINAL = HAS_DETECTRON2 and has_mask2former()
needs_original = pytest.mark.skipif(
    not HAS_ORIGINAL, reason="facebookresearch/Mask2Former is not on the Python path"
)


def build(runtime: str, backbone: str) -> nn.Module:
    """Build ours ("lite", whatever the door) or the original ("detectron2")."""
    if runtime == "detectron2":
        import_mask2former()  # whose models take the names that ours then give up
        return build_model(mask_former_cfg(backbone))
    with mock.patch.dict(BACKBONE_REGISTRY._obj_map, D2SwinTransformer=D2SwinTransformer):
        return build_model(mask_former_cfg(backbone, "HiCLMaskFormer"))


def inputs(runtime: str) -> list[dict[str, Any]]:
    batch = mask_former_batch()
    if runtime == "detectron2":
        structures = importlib.import_module("detectron2.structures")
        for entry in batch:
            labels = entry["sem_seg"]
            ids = [each for each in labels.unique().tolist() if each != 255]
            entry["instances"] = structures.Instances(labels.shape)
            entry["instances"].gt_classes = torch.tensor(ids)
            entry["instances"].gt_masks = torch.stack([labels == each for each in ids])
    return batch


@functools.cache
def results(runtime: str, backbone: str) -> dict[str, Any]:
    """Return names, shapes, predictions, scores, losses and gradients of a model filled by names."""
    model = fill(build(runtime, backbone)).eval()
    batch = inputs(runtime)
    images = torch.stack([(entry["image"] - model.pixel_mean) / model.pixel_std for entry in batch])
    with torch.no_grad():
        predictions = model.sem_seg_head(model.backbone(images))
        scores = [output["sem_seg"] for output in model(batch)]
    torch.manual_seed(5)
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return {
        "shapes": {key: list(value.shape) for key, value in model.state_dict().items()},
        "predictions": {key: predictions[key] for key in ("pred_logits", "pred_masks")},
        "scores": {str(index): each for index, each in enumerate(scores)},
        "losses": {key: value.detach() for key, value in losses.items()},
        "gradients": {key: value.grad for key, value in model.named_parameters() if value.grad is not None},
    }


def spread(runtime: str, backbone: str) -> dict[str, float]:
    """Return the size of each parameter after initialisation: the root of its mean square, 0 for zeros."""
    torch.manual_seed(0)
    head = build(runtime, backbone).sem_seg_head
    return {name: value.detach().square().mean().sqrt().item() for name, value in head.named_parameters()}


def figures(runtime: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for backbone in BACKBONES:
        found = results(runtime, backbone)
        made[backbone] = {
            "names": names(sorted(found["shapes"])),
            "predictions": {key: digest(value) for key, value in found["predictions"].items()},
            "scores": {key: digest(value) for key, value in found["scores"].items()},
            "losses": {key: value.item() for key, value in found["losses"].items()},
            "gradients": {
                key: found["gradients"][key].norm().item()
                for key in (
                    "sem_seg_head.predictor.query_feat.weight",
                    "sem_seg_head.pixel_decoder.transformer.level_embed",
                    "sem_seg_head.pixel_decoder.adapter_1.weight",
                )
            },
        }
    made["initialisation"] = spread(runtime, "build_resnet_backbone")
    return made


@pytest.mark.parametrize("backbone", BACKBONES)
def test_names_predictions_and_losses_are_those_recorded_from_the_original(backbone: str) -> None:
    assert_close(plain(figures("lite"))[backbone], golden("mask_former")[backbone], rel=2e-4, abs_=1e-4)


def test_the_initialisation_is_the_originals() -> None:
    expected = golden("mask_former")["initialisation"]
    found = spread("lite", "build_resnet_backbone")
    assert sorted(found) == sorted(expected)
    for name, size in expected.items():  # random numbers: their size is known up to some percent
        assert found[name] == pytest.approx(size, rel=0.35, abs=1e-3), name


@needs_original
@pytest.mark.parametrize("backbone", BACKBONES)
def test_ours_equals_the_original(backbone: str) -> None:
    ours, theirs = results("lite", backbone), results("detectron2", backbone)
    assert ours["shapes"] == theirs["shapes"]
    assert list(ours["losses"]) == list(theirs["losses"])
    assert len(ours["losses"]) == 30
    # Swin computes query, key and value one by one, which rounds otherwise.
    limit = 0.0 if backbone == "build_resnet_backbone" else 5e-5
    for part in ("predictions", "scores"):
        assert largest_difference(ours[part], theirs[part]) <= limit, part
    # Ours adds up the uncertain points in another order.
    assert largest_difference(ours["losses"], theirs["losses"]) <= max(limit, 4e-6)
    for name, gradient in theirs["gradients"].items():
        assert _relative(ours["gradients"][name], gradient) < 1e-4, name


@needs_original
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_checkpoint_of_either_loads_into_the_other(backbone: str) -> None:
    ours, theirs = build("lite", backbone), build("detectron2", backbone)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    fill(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert (
        largest_difference(dict(sorted(ours.state_dict().items())), dict(sorted(theirs.state_dict().items())))
        == 0
    )


@needs_original
def test_the_branch_on_the_originals_own_model_has_the_loss_that_it_has_on_ours() -> None:
    original = import_mask2former()
    batch, found = inputs("detectron2"), {}
    for base in ("MaskFormer", "HiCLMaskFormer"):
        torch.manual_seed(1)
        model = fill(build_model(mask_former_cfg(architecture="HiCL", BASE=base)))
        assert isinstance(model, original.MaskFormer) is (base == "MaskFormer")
        torch.manual_seed(5)
        found[base] = model(batch)
        found[base]["loss_hicl"].backward()
        assert all(each.grad is not None for each in model.hicl.parameters())
    theirs, ours = found.values()
    assert list(theirs) == list(ours)
    assert float(theirs["loss_hicl"]) > 0
    for name, loss in ours.items():
        torch.testing.assert_close(theirs[name], loss, rtol=1e-5, atol=1e-6)


@needs_original
@pytest.mark.parametrize("base", ["MaskFormer", "HiCLMaskFormer"])
def test_test_time_augmentation_is_the_originals_bit_for_bit(base: str) -> None:
    original = import_mask2former()
    cfg = mask_former_cfg(architecture=base)
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = True, (48, 64, 96), 140
    model = fill(build_model(cfg)).eval()
    batch = [{**entry, "height": 50, "width": 61} for entry in mask_former_batch(((64, 80), (96, 128)))]
    with torch.no_grad():
        ours = for_testing(cfg, model)(batch)
        theirs = original.SemanticSegmentorWithTTA(cfg, model)(batch)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["sem_seg"], b["sem_seg"])


@needs_original
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_the_originals_keys_keep_their_values_beside_ours(order: str) -> None:
    add_theirs = import_mask2former().add_maskformer2_config
    cfg, theirs = get_cfg(), get_cfg()
    for each in (cfg, theirs):
        add_deeplab_config(each)
    add_theirs(theirs)
    for add in (add_theirs, add_hicl_config) if order == "theirs first" else (add_hicl_config, add_theirs):
        add(cfg)
    values = dict(flatten(cfg))
    assert {key: values[key] for key, _ in flatten(theirs).items()} == dict(flatten(theirs))
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER) == ("ADAMW", 0.1)
    assert "HICL" in cfg.MODEL


@needs_original
def test_the_originals_registration_wins_and_ours_stays_reachable() -> None:
    original = import_mask2former()
    assert META_ARCH_REGISTRY.get("MaskFormer") is original.MaskFormer
    assert META_ARCH_REGISTRY.get("HiCLMaskFormer") is MaskFormer


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
