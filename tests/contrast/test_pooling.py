"""Rows out of a feature map: means over windows, and where their gradient goes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.contrast.levels import make_levels
from hicl_d2.contrast.pooling import gather_cells, gather_windows, gather_windows_plainly


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 11),
    st.integers(1, 11),
    st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_equals_average_pooling(
    batch: int,
    channels: int,
    h: int,
    w: int,
    windows: list[int],
    overlap: bool,
    channels_last: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = make_levels(sorted(windows), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=overlap)
    total = sum(batch * rows * columns for rows, columns in (level.extent((h, w)) for level in levels))
    features = torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    cells = torch.randint(batch * h * w, (7,), generator=generator)
    chosen = torch.randint(max(1, total), (9 if total else 0,), generator=generator)
    found = gather_windows(features, cells, chosen, levels, torch.float64)
    expected = gather_windows_plainly(features, cells, chosen, levels, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((found * weight).sum(), features)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), features)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout) or 1 in got.shape


def test_gradcheck() -> None:
    levels = make_levels((1, 2, 3, 6), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=True)
    features = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    cells, windows = torch.tensor([0, 5, 5]), torch.tensor([3, 42, 80, 92, 92])
    assert torch.autograd.gradcheck(
        lambda f: gather_windows(f, cells, windows, levels, torch.float64), features
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_summed_in_float32(layout: torch.memory_format) -> None:
    features = torch.full((1, 3, 16, 16), 2049.0).contiguous(memory_format=layout).half().requires_grad_()
    levels = make_levels((2, 16), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=False)
    rows = gather_windows(features, torch.tensor([1]), torch.tensor([0, 64]), levels)
    assert rows.dtype == torch.float32
    assert (rows == 2048).all()  # 2049 is no float16; the sum of 256 of them would not even be near
    rows.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.float16
    assert features.grad[0, 0, 15, 15].item() == pytest.approx(1 / 256)


def test_features_of_any_strides() -> None:
    features = torch.randn(2, 5, 9, 4).permute(0, 1, 3, 2)
    found = gather_cells(features, torch.arange(72))
    assert torch.equal(found, features.permute(0, 2, 3, 1).reshape(72, 5))


def test_the_gradient_can_be_taken_twice_from_one_graph() -> None:
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    levels = make_levels((1, 2), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=False)
    total = gather_windows(features, torch.tensor([0]), torch.tensor([17, 3]), levels).sum()
    (first,) = torch.autograd.grad(total, features, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(total, features)
    assert torch.equal(first, second)
