"""A picture that is resized where it is looked at has the pixels of the one that is resized as a whole."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2 import transforms as T
from hicl_d2.data.picture import REACH, Picture, PictureInput, resize_part

NEAREST = Image.Resampling.NEAREST


def _noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# Larger and smaller, with and without common divisors, one axis alone, tall, and both orders of Pillow's passes.
SIZES = [
    ((36, 48), (54, 72)),
    ((36, 48), (40, 53)),
    ((36, 48), (25, 34)),
    ((36, 48), (36, 48)),
    ((36, 48), (36, 60)),
    ((37, 50), (61, 50)),
    ((100, 20), (90, 18)),
    ((60, 60), (20, 50)),
    ((64, 128), (19, 38)),
]


@pytest.mark.parametrize("resample", [*REACH, NEAREST])
@pytest.mark.parametrize(("source_size", "size"), SIZES)
def test_a_part_is_cut_from_the_whole(
    source_size: tuple[int, int], size: tuple[int, int], resample: Image.Resampling
) -> None:
    source, draws = _noise(*source_size), np.random.default_rng(1)
    whole = np.asarray(source.resize(size[::-1], resample))
    for _ in range(8):
        top, left = (int(draws.integers(0, length)) for length in size)
        bottom, right = (
            int(draws.integers(start + 1, length + 1))
            for start, length in zip((top, left), size, strict=True)
        )
        part = resize_part(source, size, resample, range(top, bottom), range(left, right))
        np.testing.assert_array_equal(np.asarray(part), whole[top:bottom, left:right])


def test_no_more_is_resized_than_the_part_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *arguments)

    source = _noise(60, 80)
    monkeypatch.setattr(Image.Image, "resize", recorded)
    picture = Picture(source, "RGB").resized((120, 160), Image.Resampling.BILINEAR)
    assert picture.shape == (120, 160, 3)
    assert not made
    assert picture[40:60, 100:130].shape == (20, 30, 3)
    assert made == [(30, 14), (30, 20)]  # ten rows of the source and two on either side, then the part


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize(
    "index", [(slice(3, 9), slice(4, 30)), (slice(None, None, -1), slice(2)), (..., 1), 5]
)
def test_it_is_indexed_as_an_array(image_format: str, index: Any) -> None:
    source = _noise(36, 48)
    whole = np.asarray(source.resize((60, 45), Image.Resampling.BICUBIC))
    whole = whole[:, :, ::-1] if image_format == "BGR" else whole
    picture = Picture(source, image_format).resized((45, 60), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(picture[index], whole[index])
    assert picture.mean() == whole.mean()
    assert len(picture.shape) == picture.ndim == 3


class Resize(T.Augmentation):
    """Resize to one size."""

    def __init__(self, height: int, width: int, interp: int = Image.Resampling.BILINEAR) -> None:
        self.size, self.interp = (height, width), interp

    def get_transform(self, image: Any) -> T.Transform:
        return T.ResizeTransform(*image.shape[:2], *self.size, self.interp)


class Blend(T.Transform):
    """Move every pixel halfway to one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return (0.5 * img + 0.5 * self.value).astype(np.uint8)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class Contrast(T.Augmentation):
    """Blend the image with its mean, for which all of its pixels must be made."""

    def get_transform(self, image: Any) -> T.Transform:
        return Blend(image.mean())


PIPELINES = {
    "recipe": lambda: [
        T.ResizeShortestEdge((30, 50), 100, "range"),
        T.RandomCrop("absolute", (24, 28)),
        T.RandomFlip(),
    ],
    "area": lambda: [
        T.ResizeShortestEdge((60,), 100, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", (24, 28), 0.4, 255),
    ],
    "crop first": lambda: [T.RandomCrop("relative", (0.7, 0.8)), Resize(40, 50), T.RandomFlip()],
    "resized twice": lambda: [Resize(50, 60), Resize(30, 70), T.RandomCrop("absolute", (20, 20))],
    "flip between": lambda: [Resize(50, 60), T.RandomFlip(), T.RandomCrop("absolute", (20, 20))],
    "looks at pixels": lambda: [Resize(50, 60), Contrast(), T.RandomCrop("absolute", (20, 20))],
    "nearest": lambda: [Resize(47, 61, NEAREST), T.RandomCrop("absolute", (20, 20))],
    "nothing": lambda: [],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_augmentations_give_what_they_give_for_an_array(name: str) -> None:
    source = _noise(36, 48)
    labels = np.asarray(source)[:, :, 0] % 5
    for seed in range(6):
        results = []
        for inputs in (
            T.AugInput(np.asarray(source)[:, :, ::-1], sem_seg=labels),
            PictureInput(Picture(source, "BGR"), labels),
        ):
            np.random.seed(seed)
            T.AugmentationList(PIPELINES[name]())(inputs)
            results.append((np.asarray(inputs.image), inputs.sem_seg, np.random.random()))
        for expected, found in zip(*results, strict=True):
            np.testing.assert_array_equal(found, expected)
