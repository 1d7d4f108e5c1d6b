"""Matching queries with masks as transformers does, with fewer transfers; which classes an image holds."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from hicl_d2.modeling.mask_former.criterion import Matcher, SetCriterion
from hicl_d2.modeling.mask_former.model import _values

WEIGHTS = (2.0, 5.0, 4.0, 300)


def _case(
    bad: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Return predictions of 9 queries, and masks of images with some classes, none, and more classes than queries."""
    torch.manual_seed(0)
    masks, classes = torch.randn(3, 9, 6, 7), torch.randn(3, 9, 13)
    if bad is not None:
        masks[0, 4], classes[2, 3, 5] = bad, bad
    labels = [torch.randperm(12)[:count] for count in (4, 0, 12)]
    return masks, classes, [(torch.rand(len(ids), 24, 28) > 0.5).float() for ids in labels], labels


LOSS_WEIGHTS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 4.0, "no_object_weight": 0.1}


def _criterion(share: float) -> SetCriterion:
    points = {"points": 112, "oversample_ratio": 3.0, "importance_sample_ratio": share}
    return SetCriterion(12, **LOSS_WEIGHTS, **points, deep_supervision=True)


def _theirs(share: float) -> Mask2FormerLoss:
    points = {"train_num_points": 112, "oversample_ratio": 3.0, "importance_sample_ratio": share}
    return Mask2FormerLoss(Mask2FormerConfig(num_labels=12, **LOSS_WEIGHTS, **points), {})


def _layers(images: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "pred_masks": torch.randn(images, 9, 6, 7, generator=generator, requires_grad=True),
            "pred_logits": torch.randn(images, 9, 13, generator=generator, requires_grad=True),
        }
        for _ in range(3)
    ]


@pytest.mark.parametrize("share", [0.75, 1.0, 0.0])
@pytest.mark.parametrize("images", [slice(0, 3), slice(0, 1), slice(1, 2)])
def test_losses_gradients_and_random_numbers_drawn_are_those_of_transformers(
    images: slice, share: float
) -> None:
    _, _, masks, labels = (part[images] for part in _case())
    names = {"pred_masks": "masks_queries_logits", "pred_logits": "class_queries_logits"}
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 4.0}
    found = []
    for by_transformers in (False, True):
        layers = _layers(len(labels))
        torch.manual_seed(1)
        if by_transformers:
            first, *rest = [{names[key]: value for key, value in layer.items()} for layer in layers]
            named = _theirs(share)(
                **first, mask_labels=masks, class_labels=labels, auxiliary_predictions=rest
            )
            losses = {name: loss * weights[name.rstrip("_012")] for name, loss in named.items()}
        else:
            named = _criterion(share).losses({**layers[0], "aux_outputs": layers[1:]}, labels, masks)
            losses = {name.replace("loss_ce", "loss_cross_entropy"): loss for name, loss in named.items()}
        sum(losses.values()).backward()
        gradients = [each.grad for layer in layers for each in layer.values()]
        found.append((losses, gradients, torch.rand(3)))
    ours, theirs = found
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


def test_all_layers_wait_for_the_costs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, masks, labels = _case()
    layers = _layers(3)
    transfers = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.numel()) or to_host(self))
    _criterion(0.75).losses({**layers[0], "aux_outputs": layers[1:]}, labels, masks)
    assert transfers == [3 * 3 * 9 * 12]  # layers, images, queries, and the most masks of an image


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_the_matches_and_the_random_numbers_drawn_are_those_of_transformers(bad: float | None) -> None:
    found = []
    for kind in (Mask2FormerHungarianMatcher, Matcher):
        case = _case(bad)
        torch.manual_seed(1)
        found.append([*(each for pair in kind(*WEIGHTS)(*case) for each in pair), torch.rand(3)])
    theirs, ours = found
    assert [len(each) for each in ours[:-1]] == [4, 4, 0, 0, 9, 9]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("values", [[[3, 3, 255], [0, 3, 9]], [[7]], [[]], [[1, 2, 100]]])
def test_the_values_of_a_label_map_in_order(values: list[list[int]], dtype: torch.dtype) -> None:
    labels = torch.tensor(values).to(dtype)
    assert torch.equal(_values(labels), labels.unique())
    assert _values(labels).dtype == dtype


@pytest.mark.parametrize("values", [[-1, 4, 4], [70_000, 3], [-300, 1 << 40]])
def test_values_far_from_classes_are_found_too(values: list[int]) -> None:
    assert _values(torch.tensor(values)).tolist() == sorted(set(values))
