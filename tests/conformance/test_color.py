"""The colour augmentation has the figures of Detectron2's, which computes them with OpenCV."""

import random
import zlib
from typing import Any

import numpy as np
import pytest

from hicl_d2.data.color import ColorAugSSDTransform, bgr_to_hsv, hsv_to_bgr
from tests.conformance.runtimes import golden, needs_detectron2, plain


def _image() -> np.ndarray:
    """Return colours from all over the cube, greys and saturated ones among them."""
    numbers = np.arange(96 * 128, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1 << 24)
    image = np.stack([numbers >> np.uint64(shift) & np.uint64(255) for shift in (0, 8, 16)], axis=-1)
    image = image.reshape(96, 128, 3).astype(np.uint8)
    image[:8] = image[:8, :, :1]
    image[8:16, :, 1] = 0
    image[16:20] = 255
    return image


def _results(transform: Any, seeds: range) -> list[list[float]]:
    rows = []
    for seed in seeds:
        random.seed(seed)
        changed = transform.apply_image(_image())
        rows.append([zlib.crc32(np.ascontiguousarray(changed).tobytes()), random.random()])
    return rows


def figures(runtime: str) -> dict[str, Any]:
    if runtime == "detectron2":
        from detectron2.projects.point_rend import ColorAugSSDTransform as Transform
    else:
        Transform = ColorAugSSDTransform
    return {
        "BGR": _results(Transform("BGR"), range(40)),
        "RGB": _results(Transform("RGB"), range(40)),
        "other strengths": _results(Transform("RGB", 60, 0.2, 2.5, 0.1, 3.0, 90), range(40)),
    }


def test_ours_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("color")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("color")


@pytest.mark.slow
def test_every_colour_is_converted_as_by_opencv() -> None:
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV, which the figures are compared with, is not installed here"
    )
    levels = np.arange(256, dtype=np.uint8)
    for first in range(0, 256, 16):
        block = np.stack(np.meshgrid(levels[first : first + 16], levels, levels, indexing="ij"), axis=-1)
        block = block.reshape(4096, 256, 3)
        planes = bgr_to_hsv(block.transpose(2, 0, 1))
        np.testing.assert_array_equal(planes.transpose(1, 2, 0), cv2.cvtColor(block, cv2.COLOR_BGR2HSV))
        hsv = block.copy()
        hsv[:, :, 0] %= 180
        planes = hsv_to_bgr(hsv.transpose(2, 0, 1))
        np.testing.assert_array_equal(planes.transpose(1, 2, 0), cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
