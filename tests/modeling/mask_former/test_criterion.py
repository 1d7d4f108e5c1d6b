"""Matching queries with masks as transformers does, with fewer transfers; which classes an image holds."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher

from hicl_d2.modeling.mask_former.criterion import Matcher
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
