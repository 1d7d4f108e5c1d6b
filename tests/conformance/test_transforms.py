"""The same seed gives Detectron2's crop, size, flip and pixels."""

import zlib
from typing import Any

import numpy as np
import pytest

from tests.conformance.runtimes import golden, load, needs_detectron2, plain

CROPS = {
    "absolute": (31, 47),
    "absolute, larger than the image": (200, 60),
    "relative": (0.6, 0.45),
    "relative_range": (0.3, 0.7),
    "absolute_range": (20, 300),
}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Return an image (70, 90, 3) and its label map (70, 90) with 255 among the labels, without randomness."""
    y, x = np.mgrid[:70, :90]
    image = np.stack([(3 * x + y) % 256, (x * y) % 251, (5 * y - x) % 256], axis=-1).astype(np.uint8)
    labels = ((x // 25) + 4 * (y // 40)).astype(np.uint8)
    labels[:4] = 255
    return image, labels


def augmentations(T: Any) -> dict[str, Any]:
    """Return the augmentations that are compared."""
    crops = {f"crop {name}": T.RandomCrop(name.split(",")[0], size) for name, size in CROPS.items()}
    constrained = {
        f"constrained crop {name}": T.RandomCrop_CategoryAreaConstraint(name.split(",")[0], size, 0.55, 255)
        for name, size in CROPS.items()
    }
    return {
        **crops,
        **constrained,
        "constrained crop, no ignored class": T.RandomCrop_CategoryAreaConstraint("absolute", (30, 30), 0.5),
        "constrained crop, switched off": T.RandomCrop_CategoryAreaConstraint("absolute", (30, 30)),
        "choice": T.ResizeShortestEdge((33, 70, 101, 140), 150, "choice"),
        "choice with 0": T.ResizeShortestEdge((0, 50), 1000, "choice"),
        "range": T.ResizeShortestEdge((20, 200), 180, "range"),
        "one length": T.ResizeShortestEdge(64),
        "flip": T.RandomFlip(),
        "flip vertically": T.RandomFlip(0.3, horizontal=False, vertical=True),
    }


def recipe(T: Any) -> list[Any]:
    """Return the augmentations of DeepLab's recipe at a small size."""
    return [
        T.ResizeShortestEdge((40, 60, 80, 100), 400, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", (36, 48), 0.75, 255),
        T.RandomFlip(),
    ]


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _results(T: Any, augmentation: Any, seeds: range) -> list[list[Any]]:
    """Return size and checksums of image and labels for each seed, and the next draw from numpy."""
    rows = []
    for seed in seeds:
        image, labels = pictures()
        np.random.seed(seed)
        inputs = T.AugInput(image, sem_seg=labels)
        augmentation(inputs)
        sums = [_checksum(inputs.image), _checksum(inputs.sem_seg)]
        rows.append([list(inputs.image.shape), str(inputs.image.dtype), *sums, np.random.randint(1 << 30)])
    return rows


def _geometry(T: Any) -> dict[str, Any]:
    resize = T.ResizeTransform(70, 90, 35, 120)
    image, labels = pictures()
    return {
        "points": resize.apply_coords(np.array([[0.0, 0.0], [90.0, 70.0], [13.0, 27.0]])).tolist(),
        "boxes": resize.apply_box(np.array([[1.0, 2.0, 30.0, 40.0]])).tolist(),
        "one channel": _checksum(resize.apply_image(image[:, :, :1])),
        "nearest": _checksum(resize.apply_segmentation(labels)),
        "float": np.round(resize.apply_image(image.astype(np.float32))[::9, ::17], 3).tolist(),
        "float, one channel": np.round(resize.apply_image(image[:, :, 0] / 255.0)[::9, ::17], 4).tolist(),
        "shapes": [
            list(T.ResizeShortestEdge.get_output_shape(h, w, short, most))
            for h, w, short, most in [(480, 640, 800, 1333), (1024, 2048, 768, 1000), (333, 333, 77, 50)]
        ],
    }


def figures(runtime: str) -> dict[str, Any]:
    T = load(runtime, "data.transforms")
    chain = T.AugmentationList(recipe(T))
    return {
        "augmentations": {name: _results(T, aug, range(4)) for name, aug in augmentations(T).items()},
        "recipe": _results(T, chain, range(12)),
        "names": {name: str(aug) for name, aug in augmentations(T).items() if "constrained" not in name},
        "chain": str(T.AugmentationList([T.RandomFlip(), T.ResizeShortestEdge((4, 8))])),
        "geometry": _geometry(T),
    }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("transforms")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("transforms")


@needs_detectron2
@pytest.mark.parametrize("seed", range(20))
def test_the_recipe_gives_equal_pixels(seed: int) -> None:
    results = []
    for runtime in ("lite", "detectron2"):
        T = load(runtime, "data.transforms")
        image, labels = pictures()
        np.random.seed(seed)
        inputs = T.AugInput(image, sem_seg=labels)
        T.AugmentationList(recipe(T))(inputs)
        results.append((inputs.image, inputs.sem_seg))
    (image, labels), (expected_image, expected_labels) = results
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(labels, expected_labels)
