"""The fast choice of a class equals argmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.evaluation import predicted_classes, prediction


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(1, 260),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    levels=st.sampled_from([2, 5, 10**6]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_equals_argmax_with_ties_and_any_layout(
    classes, height, width, dtype, levels, channels_last, seed
):
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randint(0, levels, (classes, height, width), generator=generator) - levels // 2).to(dtype)
    if channels_last:
        scores = scores.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    # numpy promises the first of equal values, which torch's CPU kernels give as well
    expected = torch.from_numpy(scores.double().numpy().argmax(axis=0))
    result = predicted_classes(scores)
    assert result.dtype == (torch.uint8 if classes <= 256 else torch.int64)
    assert torch.equal(result.long(), expected)


def test_chunks_that_do_not_divide_the_image(monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 7)
    scores = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predicted_classes(scores).long(), scores.argmax(dim=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_count_as_in_argmax(value):
    scores = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(1))
    scores[2, 3, 4] = scores[4, 3, 4] = scores[0, 0, 0] = value
    assert torch.equal(predicted_classes(scores).long(), scores.argmax(dim=0))


def test_scores_that_require_a_gradient_and_slices_of_a_larger_map():
    scores = torch.randn(4, 10, 10, generator=torch.Generator().manual_seed(2), requires_grad=True)
    part = scores[:, 1:8, 2:9]
    assert torch.equal(predicted_classes(part).long(), part.argmax(dim=0))
