"""Components as means over the cells of one class in a window, against loops over cells and windows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hicl_d2.contrast import HiCLBranch, attach
from hicl_d2.contrast.class_pooling import belongs_to_component, find_candidates, gather_class_windows
from hicl_d2.contrast.grid import align_labels
from hicl_d2.contrast.levels import Level
from tests.contrast.attach_models import CLASSES, make_model
from tests.contrast.attach_models import make_batch as make_images
from tests.contrast.batches import make_batch, make_branch

LEVELS = {
    "side by side": (Level(1, 1), Level(2, 2), Level(4, 4)),
    "overlapping": (Level(2, 1), Level(4, 2), Level(5, 2)),
    "larger than the map": (Level(1, 1), Level(32, 32)),
}


def make_classes(size: tuple[int, int] = (7, 9), seed: int = 0, share: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (2, *size), generator=generator)
    return torch.where(torch.rand(classes.shape, generator=generator) < share, -1, classes)


def groups(classes: Tensor, level: Level) -> dict[tuple[int, int, int, int], list[tuple[int, int, int]]]:
    """Return by (image, row, column, class) of every window the cells of that class in it, one cell at a time."""
    B, h, w = classes.shape
    found: dict[tuple[int, int, int, int], list[tuple[int, int, int]]] = {}
    for b in range(B):
        for top in range(0, h - level.window + 1, level.step):
            for left in range(0, w - level.window + 1, level.step):
                for y in range(top, top + level.window):
                    for x in range(left, left + level.window):
                        label = int(classes[b, y, x])
                        if label >= 0:
                            found.setdefault((b, top, left, label), []).append((b, y, x))
    return found


def rows_of(features: Tensor, cells: list[tuple[int, int, int]]) -> Tensor:
    return torch.stack([features[b, :, y, x] for b, y, x in cells]).mean(0)


@pytest.mark.parametrize("case", LEVELS)
def test_candidates_are_the_groups_that_a_loop_finds(case: str) -> None:
    classes = make_classes()
    for level in LEVELS[case]:
        expected = groups(classes, level)
        pruned = find_candidates(classes, 3, level)
        figures = {name: int(value) for name, value in pruned.counts().items()}
        kept = [cells for cells in expected.values() if len(cells) >= level.window]
        assert figures["candidates"] == len(expected)
        assert figures["kept"] == len(kept)
        assert figures["pruned_purity"] == len(expected) - len(kept)
        firsts = sorted(min(cells) for cells in kept)
        assert sorted(map(tuple, pruned.kept.nonzero()[:, 1:].tolist())) == firsts
        members = {cell for cells in kept for cell in cells}
        assert set(map(tuple, belongs_to_component(classes, 3, level).nonzero().tolist())) == members


@pytest.mark.parametrize("case", LEVELS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "last"])
def test_rows_and_gradients_are_means_over_those_cells(case: str, layout: torch.memory_format) -> None:
    levels, classes = LEVELS[case], make_classes()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 4, 7, 9, generator=generator, dtype=torch.float64)
    features = features.contiguous(memory_format=layout).requires_grad_()
    index, expected, start = [], [], 0
    for level in levels:
        kept = find_candidates(classes, 3, level).kept
        for p, b, y, x in kept.nonzero().tolist():
            index.append(start + ((p * 2 + b) * 7 + y) * 9 + x)
        by_first: dict[tuple[int, int, int], list[Any]] = {}
        for cells in groups(classes, level).values():
            by_first.setdefault(min(cells), []).append(cells)
        for p, b, y, x in kept.nonzero().tolist():
            # A cell may be the first of several windows that overlap: the p-th group tells which.
            fitting = {tuple(c) for c in by_first[b, y, x] if _is_of_group(c, classes, level, p)}
            assert len(fitting) == 1
            expected.append(rows_of(features, [*fitting.pop()]))
        start += kept.numel()
    components, cells = torch.tensor([*index, 0]), torch.tensor([3, 70])
    valid = torch.tensor([True] * len(index) + [False])
    rows = gather_class_windows(features, cells, components, valid, classes, 3, levels, torch.float64)
    wanted = torch.stack([features[0, :, 0, 3], features[1, :, 0, 7], *expected, features[0, :, 0, 0]])
    torch.testing.assert_close(rows, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    found, right = (torch.autograd.grad((part * weights).sum(), features)[0] for part in (rows, wanted))
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def _is_of_group(cells: list[tuple[int, int, int]], classes: Tensor, level: Level, group: int) -> bool:
    """Tell whether a window, known by its cells of a class, is of the group-th set of windows that do not overlap."""
    period = -(-level.window // level.step)
    for (_, top, left, _), found in groups(classes, level).items():
        if found == cells and (top // level.step % period, left // level.step % period) == divmod(
            group, period
        ):
            return True
    return False


def test_where_every_window_is_pure_both_poolings_are_one() -> None:
    labels = torch.arange(4).view(1, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)
    features, _, _ = make_batch(batch=1, size=(16, 16), stride=1)
    losses = []
    for pooling in ("window", "class"):
        branch = make_branch(windows=(1, 2, 4), pooling=pooling, anchors=500, components=1000)
        loss = branch(features, labels, seed=1).loss
        losses.append((loss, torch.autograd.grad(loss, features)[0]))
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_thin_object_has_components_at_every_level() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 5] = 1
    grid = align_labels(labels, (16, 16), 2)
    for pooling, expected in (("window", [16, 0, 0]), ("class", [16, 8, 4])):
        branch = HiCLBranch(4, 2, windows=(1, 2, 4), pooling=pooling)
        drawn = branch.draw(grid, None, torch.Generator().manual_seed(0))
        of_line = [int((part.kept & (part.winners == 1)).sum()) for part in drawn.pruned]
        assert of_line == expected


def test_cells_of_the_class_of_their_middle_pixel_are_all_candidates() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 6] = 1  # the middle column of cells of 4 pixels that are otherwise of class 0
    grid = align_labels(labels, (4, 4), 2)
    for cell_class, expected in (("majority", [0, 0]), ("middle", [4, 2])):
        branch = HiCLBranch(4, 2, windows=(1, 2), pooling="class", cell_class=cell_class)
        drawn = branch.draw(grid, None, torch.Generator().manual_seed(0))
        assert [int((part.kept & (part.winners == 1)).sum()) for part in drawn.pruned] == expected
        assert int((drawn.classes == 1).sum()) == expected[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"level_loss": "separate"},
        {"detach_components": True},
        {"overlap": True},
        {"bank_size": 3},
        {"windows": (2, 4)},
        {"cell_class": "middle"},
    ],
    ids=lambda settings: next(iter(settings), "plain"),
)
def test_every_parameter_and_the_features_get_a_gradient(settings: dict[str, Any]) -> None:
    branch = make_branch(**{"pooling": "class", **settings})
    features, labels, logits = make_batch()
    output = branch(features, labels, logits)
    output.loss.backward()
    assert output.loss > 0
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())
    assert output.diagnostics["hicl/anchors"] > 0


def test_nothing_labelled_gives_a_zero_with_a_graph() -> None:
    branch = make_branch(pooling="class")
    features, labels, logits = make_batch()
    loss = branch(features, torch.full_like(labels, 255), logits).loss
    loss.backward()
    assert loss == 0
    assert features.grad is not None
    assert (features.grad == 0).all()


@pytest.mark.parametrize(
    "settings", [{"confidence_low": (0.2,)}, {"confidence_high": (0.9,)}, {"boundary_negatives": 0.5}]
)
def test_what_it_does_not_know_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pooling class knows neither confidence nor boundary_negatives"):
        make_branch(pooling="class", **settings)


def test_another_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling must be window or class, not 'max'"):
        make_branch(pooling="max")


def test_it_is_attached_by_a_keyword() -> None:
    model = make_model()
    branch = attach(model, feature="classifier", num_classes=CLASSES, windows=(1, 2), pooling="class")
    images, labels = make_images()
    model(images)
    assert branch.loss(labels) > 0
