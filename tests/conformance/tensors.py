"""Tensors as figures: a few numbers that tell two tensors apart, and comparison up to rounding."""

import zlib
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor


def digest(tensor: Tensor) -> dict[str, Any]:
    """Return shape, mean, mean of squares and the first elements of ``tensor``."""
    values = tensor.detach().double().flatten()
    return {
        "shape": list(tensor.shape),
        "mean": values.mean().item(),
        "square": values.square().mean().item(),
        "first": values[:4].tolist(),
    }


def names(keys: Iterable[str]) -> list[int]:
    """Return number and checksum of ``keys``, in their order."""
    listed = list(keys)
    return [len(listed), zlib.crc32("\n".join(listed).encode())]


def assert_close(
    found: Any, expected: Any, where: str = "figures", rel: float = 1e-4, abs_: float = 1e-6
) -> None:
    """Assert that two JSON-able values are equal, numbers with a fraction up to rounding."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}, {key}", rel, abs_)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}[{index}]", rel, abs_)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=abs_, nan_ok=True), where
    else:
        assert found == expected, where


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between tensors of the same name."""
    assert list(a) == list(b)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def image_batch(
    sizes: Iterable[tuple[int, int]], num_classes: int, ignore_value: int = 255
) -> list[dict[str, Any]]:
    """Return inputs for a segmentor, without randomness from the global generator."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes:
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, num_classes, (height, width), generator=generator)
        labels[: height // 8] = ignore_value
        batch.append({"image": image, "sem_seg": labels, "height": height - 7, "width": width + 9})
    return batch
