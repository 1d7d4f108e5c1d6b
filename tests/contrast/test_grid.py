"""Labels over the feature grid: which stride, what padding, what is ignored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hicl_d2.contrast.grid import align_labels, infer_stride, resize_logits


@pytest.mark.parametrize(
    ("labels", "features", "stride"),
    [
        ((512, 1024), (128, 256), 4),
        ((513, 513), (129, 129), 4),
        ((769, 769), (193, 193), 4),
        ((512, 512), (32, 32), 16),
        ((12, 18), (4, 6), 3),
        ((7, 9), (7, 9), 1),
        ((6, 6), (2, 2), 3),
        ((5, 5), (2, 2), 4),
        ((5, 7), (1, 1), 7),
        ((720, 960), (90, 120), 8),
        ((360, 480), (23, 30), 16),
    ],
)
def test_finds_the_stride(labels: tuple[int, int], features: tuple[int, int], stride: int) -> None:
    assert infer_stride(labels, features) == stride


@pytest.mark.parametrize(
    ("labels", "features"), [((512, 512), (128, 100)), ((4, 4), (8, 8)), ((9, 9), (6, 6)), ((0, 4), (1, 1))]
)
def test_sizes_that_do_not_fit_are_named(labels: tuple[int, int], features: tuple[int, int]) -> None:
    message = rf"{labels[0]} x {labels[1]} pixels .* {features[0]} x {features[1]} cells"
    with pytest.raises(ValueError, match=message):
        infer_stride(labels, features)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 8))
def test_a_stride_that_is_found_covers_the_labels(
    stride: int, h: int, w: int, less_h: int, less_w: int
) -> None:
    size = (h * stride - less_h % stride, w * stride - less_w % stride)
    found = infer_stride(size, (h, w))
    assert (-(-size[0] // found), -(-size[1] // found)) == (h, w)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("num_classes", [3, 255, 300])
def test_planes_hold_every_pixel_once(dtype: torch.dtype, num_classes: int) -> None:
    labels = torch.randint(min(num_classes, 200), (2, 7, 10)).to(dtype)
    labels[0, 0, 0] = 255 if num_classes < 256 else 0
    grid = align_labels(labels, (3, 4), num_classes)
    assert grid.stride == 3
    assert grid.size == (3, 4)
    assert grid.batch_size == 2
    for y in range(9):
        for x in range(12):
            pixel = grid.planes[(y % 3) * 3 + x % 3, :, y // 3, x // 3].tolist()
            expected = [num_classes, num_classes]
            if y < 7 and x < 10:
                expected = [
                    v if v < num_classes and v != 255 else num_classes for v in labels[:, y, x].tolist()
                ]
            assert pixel == expected


@pytest.mark.parametrize("num_classes", [4, 255, 400])
def test_values_outside_the_classes_are_unlabelled(num_classes: int) -> None:
    labels = torch.tensor([[[-1, -300, num_classes, num_classes + 256, 2**40, 2**32 + 1, 3, 0]]])
    assert align_labels(labels, (1, 8), num_classes).planes.flatten().tolist() == [num_classes] * 6 + [3, 0]


def test_an_ignore_value_among_the_classes_is_unlabelled() -> None:
    labels = torch.tensor([[[0, 1, 2, 3]]])
    assert align_labels(labels, (1, 4), 4, ignore_value=0).planes.flatten().tolist() == [4, 1, 2, 3]


def test_labels_are_not_changed() -> None:
    labels = torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8)
    align_labels(labels, (1, 4), 2)
    assert labels.flatten().tolist() == [0, 1, 2, 255]


def test_logits_are_resized_without_aligning_corners() -> None:
    logits = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float16, requires_grad=True)
    resized = resize_logits(logits, (1, 4))
    assert resized.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resized.dtype == torch.float32
    assert not resized.requires_grad
