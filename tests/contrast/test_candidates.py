"""Window statistics and pruning against counting pixel by pixel."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hicl_d2.contrast import candidates, fused
from hicl_d2.contrast.fused.links import link_levels
from hicl_d2.contrast.grid import LabelGrid, align_labels
from hicl_d2.contrast.levels import Level, make_levels
from hicl_d2.contrast.operations import OPERATIONS, Operations
from hicl_d2.contrast.pruning import prune, touches_boundary
from tests.contrast.reference import Settings, count_pixels, find_windows, probability

both = pytest.mark.parametrize("operations", OPERATIONS.values(), ids=OPERATIONS.keys())


def levels_of(windows: tuple[int, ...], purity: float = 0.9, overlap: bool = False) -> tuple[Level, ...]:
    return make_levels(windows, (purity,), (0.5,), (0.0,), (1.0,), (1.0,), overlap=overlap)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Tensor, LabelGrid]:
    stride, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    num_classes, seed = draw(st.integers(1, 9)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    size = (h * stride - draw(st.integers(0, stride - 1)), w * stride - draw(st.integers(0, stride - 1)))
    labels = torch.randint(num_classes + draw(st.integers(0, 1)), (2, *size), generator=generator)
    patch = draw(st.integers(1, 6))
    labels = labels[:, ::patch, ::patch].repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    labels = labels[:, : size[0], : size[1]]
    labels = torch.where(
        torch.rand(labels.shape, generator=generator) < draw(st.sampled_from([0, 0.1, 0.5])), 255, labels
    )
    return labels, align_labels(labels, (h, w), num_classes)


windows_of = st.lists(st.integers(1, 8), min_size=1, max_size=4, unique=True).map(
    lambda found: tuple(sorted(found))
)


@both
@settings(max_examples=60, deadline=None)
@given(grids(), windows_of, st.booleans(), st.sampled_from([0.0, 0.4, 0.5, 0.51, 0.9, 1.0]))
def test_counts_equal_counting_pixels(
    operations: Operations,
    given: tuple[Tensor, LabelGrid],
    windows: tuple[int, ...],
    overlap: bool,
    purity: float,
) -> None:
    labels, grid = given
    levels = levels_of(windows, purity, overlap)
    for level, found in zip(levels, operations.count_labels(grid, levels), strict=True):
        rows, columns = level.extent(grid.size)
        assert all(part.shape == (2, rows, columns) for part in found)
        for image, i, j in itertools.product(range(2), range(rows), range(columns)):
            counts = count_pixels(
                labels[image].tolist(),
                grid.stride,
                i * level.step,
                j * level.step,
                level.window,
                grid.num_classes,
            )
            total, most = sum(counts.values()), max(counts.values(), default=0)
            winner = min((k for k, n in counts.items() if n == most), default=-1)
            got = [int(part[image, i, j]) for part in found]
            assert got[2] == total
            if operations is OPERATIONS["textbook"] or purity <= 0.5 or 2 * most > total or total == 0:
                assert got[:2] == [winner, most]
            else:  # no majority, so the window cannot pass
                assert 2 * got[1] <= total


@both
@settings(max_examples=40, deadline=None)
@given(
    grids(),
    windows_of,
    st.booleans(),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_pruning_equals_the_loops(
    operations: Operations,
    given: tuple[Tensor, LabelGrid],
    windows: tuple[int, ...],
    overlap: bool,
    purity: float,
    coverage: float,
) -> None:
    labels, grid = given
    logits = torch.randn(2, grid.num_classes, *grid.size, dtype=torch.float64)
    confidence = (0.15, 0.8)
    levels = make_levels(windows, (purity,), (coverage,), (0.15,), (0.8,), (1.0,), overlap=overlap)
    kept, reasons = find_windows(
        labels,
        grid.size,
        grid.stride,
        grid.num_classes,
        [Settings(level.window, level.step, purity, coverage, confidence) for level in levels],
        logits,
    )
    expected = {(k.level, k.image, k.row, k.column): label for k, label in kept.items()}
    got = {}
    scores = operations.ClassScores(logits)
    for number, (level, statistics, reason) in enumerate(
        zip(levels, operations.count_labels(grid, levels), reasons, strict=True)
    ):
        pruned = prune(grid, statistics, level, scores)
        for image, i, j in (pruned.classes >= 0).nonzero().tolist():
            got[(number, image, i * level.step, j * level.step)] = int(pruned.classes[image, i, j])
        assert {key.removeprefix("pruned_"): int(n) for key, n in pruned.counts().items()} == reason
    assert got == expected


@both
def test_class_probability_is_a_mean_of_softmaxes(operations: Operations) -> None:
    logits = 5 * torch.randn(1, 3, 6, 6, dtype=torch.float64)
    for level in (Level(2, 2), Level(3, 1), Level(9, 9)):
        rows, columns = level.extent((6, 6))
        classes = torch.randint(3, (1, rows, columns))
        found = operations.ClassScores(logits).mean_probability(classes, level)
        assert found.shape == classes.shape
        for i in range(rows):
            for j in range(columns):
                expected = probability(
                    logits[0].tolist(), int(classes[0, i, j]), i * level.step, j * level.step, level.window
                )
                assert found[0, i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("overlap", [False, True])
def test_boundary_windows_hold_or_touch_another_class(overlap: bool) -> None:
    labels = torch.randint(3, (2, 4, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, :6] = 255
    labels[1, 5, 5] = (labels[1, 5, 5] + 1) % 3
    grid = align_labels(labels, (8, 10), 3)
    (cells,) = fused.count_labels(grid, levels_of((1,), 0.0))
    sets = [
        [
            [
                set(labels[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten().tolist()) - {255}
                for x in range(10)
            ]
            for y in range(8)
        ]
        for b in range(2)
    ]

    def on_boundary(b: int, y: int, x: int) -> bool:
        here = sets[b][y][x]
        beside = [
            sets[b][i][j]
            for i, j in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= i < 8 and 0 <= j < 10
        ]
        return len(here) > 1 or (bool(here) and any(there and there != here for there in beside))

    for level in levels_of((1, 2, 3), overlap=overlap):
        found = touches_boundary(cells, level)
        for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
            inside = [
                on_boundary(b, y, x)
                for y in range(i * level.step, i * level.step + level.window)
                for x in range(j * level.step, j * level.step + level.window)
            ]
            assert bool(found[b, i, j]) == any(inside)


@both
def test_no_class_is_minus_one(operations: Operations) -> None:
    labels = torch.tensor([[[0, 0, 1, 2], [0, 0, 1, 1], [3, 255, 255, 255], [255, 255, 255, 255]]])
    grid = align_labels(labels, (2, 2), 4)
    for level, kept in (
        (Level.cell(), [[0, 1], [3, -1]]),
        (Level.cell(purity=0.9), [[0, -1], [3, -1]]),
        (Level.cell(coverage=0.5), [[0, 1], [-1, -1]]),
    ):
        (cells,) = operations.count_labels(grid, [level])
        assert cells.classes.tolist() == [[[0, 1], [3, -1]]]
        assert prune(grid, cells, level).classes.tolist() == [kept]


@both
def test_a_tie_goes_to_the_lower_class(operations: Operations) -> None:
    labels = torch.tensor([[[2, 1], [1, 2]]])
    grid = align_labels(labels, (1, 1), 3)
    (level,) = levels_of((1,), 0.5)
    (found,) = operations.count_labels(grid, [level])
    assert found.classes.item() == 1
    assert prune(grid, found, level).classes.item() == 1


@both
def test_unlabelled_pixels_never_win(operations: Operations) -> None:
    """Two classes cancel each other's votes, and what is left over must not be taken for a class."""
    labels = torch.tensor([[[255, 0], [1, 255]]])
    grid = align_labels(labels, (1, 1), 2)
    (found,) = operations.count_labels(grid, levels_of((1,), 0.9))
    assert int(found.count) <= 1
    assert prune(grid, found, levels_of((1,), 0.9)[0]).classes.item() == -1


@pytest.mark.parametrize("num_classes", [254, 255, 256, 300])
def test_as_many_classes_as_a_byte_holds_and_more(num_classes: int) -> None:
    labels = torch.randint(num_classes - 10, num_classes, (1, 4, 4))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :5, :6] = -1
    grid = align_labels(labels, (8, 8), num_classes, ignore_value=-1)
    levels = levels_of((1, 2, 4))
    for fast, plain in zip(
        fused.count_labels(grid, levels), candidates.count_labels(grid, levels), strict=True
    ):
        assert torch.equal(fast.labelled, plain.labelled)
        assert torch.equal(fast.classes < 0, plain.labelled == 0)
        keep = 2 * plain.count > plain.labelled
        assert torch.equal(fast.classes[keep], plain.classes[keep].int())
        assert torch.equal(fast.count[keep], plain.count[keep])


@both
def test_strides_beyond_what_a_byte_counts(operations: Operations) -> None:
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, :, 20:] = 1
    grid = align_labels(labels, (2, 2), 2)
    assert grid.stride == 20
    (cells,) = operations.count_labels(grid, levels_of((1,)))
    assert cells.count.tolist() == [[[400, 400], [400, 400]]]
    assert cells.classes.tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("form", [candidates, fused])
def test_sum_windows_is_a_box_filter(form: Any) -> None:
    cells = torch.randint(9, (2, 7, 8)).float()
    for window, step in ((1, 1), (2, 2), (3, 1), (4, 3), (8, 2)):
        expected = cells.unfold(1, window, step).unfold(2, window, step).sum((-1, -2)) if window < 8 else None
        found = form.sum_windows(cells, Level(window, step))
        if expected is None:
            assert found.shape == (2, 0, 1)
        else:
            assert torch.equal(found, expected)


def test_levels_are_linked_to_the_largest_that_tiles_them() -> None:
    parents = [link.parent for link in link_levels(levels_of((1, 2, 3, 4, 6, 12)))]
    assert parents == [-1, 0, 0, 1, 2, 4]
    overlapping = link_levels(levels_of((1, 2, 4, 8), overlap=True))
    assert [tuple(link) for link in overlapping] == [(-1, 1, 1, 1), (0, 1, 2, 1), (1, 2, 2, 1), (2, 2, 2, 1)]
