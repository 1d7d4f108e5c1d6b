"""Matching queries with masks as transformers does, with fewer transfers; which classes an image holds."""

import pytest
import torch

pytest.importorskip("transformers")

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


@pytest.mark.parametrize(("masks", "share"), [(5, 0.75), (1, 1.0), (3, 0.0), (0, 0.75)])
def test_the_points_are_those_of_transformers_and_so_are_the_random_numbers_drawn(
    masks: int, share: float
) -> None:
    settings = dict.fromkeys(("class_weight", "mask_weight", "dice_weight", "no_object_weight"), 1.0)
    criterion = SetCriterion(
        7, **settings, points=112, oversample_ratio=3.0, importance_sample_ratio=share, deep_supervision=True
    )
    logits = torch.randn(masks, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    found = []
    for method in (Mask2FormerLoss, SetCriterion):
        torch.manual_seed(1)
        points = method.sample_points_using_uncertainty(
            criterion, logits, criterion.calculate_uncertainty, 112, 3.0, share
        )
        found.append(sorted(map(tuple, each.tolist())) for each in points)
        found.append(torch.rand(1))
    assert list(found[0]) == list(found[2])
    assert found[1] == found[3]


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


def test_the_costs_of_all_images_come_over_together(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.numel()) or to_host(self))
    Matcher(*WEIGHTS)(*_case())
    assert transfers == [9 * (4 + 0 + 12)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("values", [[[3, 3, 255], [0, 3, 9]], [[7]], [[]], [[1, 2, 100]]])
def test_the_values_of_a_label_map_in_order(values: list[list[int]], dtype: torch.dtype) -> None:
    labels = torch.tensor(values).to(dtype)
    assert torch.equal(_values(labels), labels.unique())
    assert _values(labels).dtype == dtype


@pytest.mark.parametrize("values", [[-1, 4, 4], [70_000, 3], [-300, 1 << 40]])
def test_values_far_from_classes_are_found_too(values: list[int]) -> None:
    assert _values(torch.tensor(values)).tolist() == sorted(set(values))
