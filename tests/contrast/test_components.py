"""Components: rows out of a feature map, their gradient, and what joins them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.contrast import components, fused
from hicl_d2.contrast.components import Components
from hicl_d2.contrast.levels import Level, make_levels
from tests.contrast.reference import Window, mean_feature

FORMS = {"textbook": components, "fused": fused}
both = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("overlap", [False, True])
def test_equals_means_over_cells(form: Any, dtype: torch.dtype, overlap: bool) -> None:
    levels = make_levels((1, 2, 3), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=overlap)
    features = torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True)
    windows = [
        Window(image, row * level.step, column * level.step, level.window, k)
        for k, level in enumerate(levels)
        for image in range(2)
        for row in range(level.extent((5, 4))[0])
        for column in range(level.extent((5, 4))[1])
    ]
    found = form.gather_windows(features, torch.tensor([7, 39, 7]), torch.arange(len(windows)), levels, dtype)
    cells = [Window(0, 1, 3, 1, 0), Window(1, 4, 3, 1, 0), Window(0, 1, 3, 1, 0)]
    expected = torch.stack([mean_feature(features, window) for window in (*cells, *windows)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(found)
    (got,), (wanted,) = (torch.autograd.grad((rows * weight).sum(), features) for rows in (found, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


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
def test_both_forms_are_equal(
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
    found = fused.gather_windows(features, cells, chosen, levels, torch.float64)
    expected = components.gather_windows(features, cells, chosen, levels, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((found * weight).sum(), features)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), features)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout) or 1 in got.shape


@both
def test_gradcheck(form: Any) -> None:
    levels = make_levels((1, 2, 3, 6), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=True)
    features = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    cells, windows = torch.tensor([0, 5, 5]), torch.tensor([3, 42, 80, 92, 92])
    assert torch.autograd.gradcheck(
        lambda f: form.gather_windows(f, cells, windows, levels, torch.float64), features
    )


@both
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_summed_in_float32(form: Any, layout: torch.memory_format) -> None:
    features = torch.full((1, 3, 16, 16), 2049.0).contiguous(memory_format=layout).half().requires_grad_()
    levels = make_levels((2, 16), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=False)
    rows = form.gather_windows(features, torch.tensor([1]), torch.tensor([0, 64]), levels)
    assert rows.dtype == torch.float32
    assert (rows == 2048).all()  # 2049 is no float16; the sum of 256 of them would not even be near
    rows.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.float16
    assert features.grad[0, 0, 15, 15].item() == pytest.approx(1 / 256)


@both
def test_features_of_any_strides(form: Any) -> None:
    features = torch.randn(2, 5, 9, 4).permute(0, 1, 3, 2)
    found = form.gather_cells(features, torch.arange(72))
    assert torch.equal(found, features.permute(0, 2, 3, 1).reshape(72, 5))


@both
def test_the_gradient_can_be_taken_twice_from_one_graph(form: Any) -> None:
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    levels = make_levels((1, 2), (0.9,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=False)
    total = form.gather_windows(features, torch.tensor([0]), torch.tensor([17, 3]), levels).sum()
    (first,) = torch.autograd.grad(total, features, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(total, features)
    assert torch.equal(first, second)


@both
@pytest.mark.parametrize("levels", [(), (Level(9, 9),)], ids=["no_levels", "window_beyond_the_map"])
def test_without_windows_there_are_the_cells_alone(form: Any, levels: tuple[Level, ...]) -> None:
    features = torch.randn(1, 3, 4, 4)
    rows = form.gather_windows(features, torch.tensor([5]), torch.zeros(0, dtype=torch.long), levels)
    assert torch.equal(rows, features[:, :, 1, 1])


def test_what_a_bank_recalls_comes_behind_and_is_no_cell_of_the_batch() -> None:
    new = Components(
        torch.randn(3, 2, dtype=torch.float64, requires_grad=True),
        torch.tensor([0, 1, -1]),
        torch.tensor([0, 1, 0]),
        torch.tensor([7, -1, -1]),
    )
    recalled = Components(
        torch.randn(2, 2), torch.tensor([-1, 1]), torch.tensor([0, 0]), runs=(torch.tensor([0, 1]),)
    )
    joined = new.join(recalled)
    assert joined.rows is new.rows
    assert torch.equal(joined.all_rows, torch.cat([new.rows, recalled.rows.double()]))
    assert joined.classes.tolist() == [0, 1, -1, -1, 1]
    assert joined.levels.tolist() == [0, 1, 0, 0, 0]
    assert joined.cells is not None
    assert joined.cells.tolist() == [7, -1, -1, -1, -1]
    assert [run.tolist() for run in joined.sorted_runs] == [[0, 1, -1], [0, 1]]


def test_alone_gathering_changes_nothing() -> None:
    new = Components(torch.randn(3, 2), torch.tensor([0, 1, -1]), torch.tensor([0, 1, 0]))
    assert new.gather() is new
