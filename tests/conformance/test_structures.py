"""Images of several sizes are batched as Detectron2 does."""

from typing import Any

import pytest
import torch

from tests.conformance.runtimes import golden, load, needs_detectron2, plain

SIZES = [(5, 7), (6, 4), (3, 9)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded with 255": {"pad_value": 255.0},
    "multiple of 1": {"size_divisibility": 1},
    "multiple of 4": {"size_divisibility": 4},
}


def _images(count: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [
        torch.arange(1, 1 + channels * height * width).reshape(channels, height, width).to(dtype)
        for height, width in SIZES[:count]
    ]


def _describe(batch: Any) -> dict[str, Any]:
    return {
        "shape": list(batch.tensor.shape),
        "sum": batch.tensor.double().sum().item(),
        "corner": batch.tensor[..., -1, -1].double().flatten().tolist(),
        "sizes": [list(map(int, size)) for size in batch.image_sizes],
        "first": [list(batch[0].shape), batch[0].double().sum().item()],
        "length": len(batch),
        "contiguous": batch.tensor.is_contiguous(),
    }


def figures(runtime: str) -> dict[str, Any]:
    from_tensors = load(runtime, "structures").ImageList.from_tensors
    described = {
        f"{name}, {count}": _describe(from_tensors(_images(count), **options))
        for name, options in OPTIONS.items()
        for count in (1, 3)
    }
    labels = [image[0] for image in _images(3, 1, torch.int64)]
    described["labels"] = _describe(from_tensors(labels, 4, 255))
    return described


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("structures")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("structures")


@pytest.mark.parametrize("runtime", ["lite", pytest.param("detectron2", marks=needs_detectron2)])
def test_no_image_and_unlike_images_are_refused(runtime: str) -> None:
    from_tensors = load(runtime, "structures").ImageList.from_tensors
    for images in ([], [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)]):
        with pytest.raises(AssertionError):
            from_tensors(images)


@needs_detectron2
def test_batches_are_equal_element_by_element() -> None:
    for count in (1, 2, 3):
        ours, theirs = (
            load(runtime, "structures").ImageList.from_tensors(_images(count), 4, 7.5)
            for runtime in ("lite", "detectron2")
        )
        assert torch.equal(ours.tensor, theirs.tensor)
        assert ours.image_sizes == theirs.image_sizes
