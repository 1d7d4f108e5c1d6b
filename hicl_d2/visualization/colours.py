"""Colours of classes, and label maps painted with them."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

HATCH_GROUND: Colour = (24, 24, 28)
HATCH_LINE: Colour = (158, 158, 168)
HATCH_PERIOD = 7
HATCH_WIDTH = 2

# The share of a circle that keeps any number of hues apart: consecutive ones lie far from each other.
GOLDEN_RATIO = 0.6180339887
SHADES = ((0.75, 0.90), (0.55, 0.62), (0.40, 0.98))


def palette(num_classes: int) -> list[Colour]:
    """Return ``num_classes`` distinct colours, RGB of 0 to 255, the same at every call; none is near black or
    white.
    """
    colours = []
    for index in range(num_classes):
        saturation, value = SHADES[index % len(SHADES)]
        red, green, blue = colorsys.hsv_to_rgb((0.58 + index * GOLDEN_RATIO) % 1, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def paint(labels: np.ndarray, colours: Sequence[Colour], ignore_value: int = 255) -> Image.Image:
    """Return a label map (H, W), any integer dtype, as an RGB image; ignored pixels are dark and hatched.

    Raises ValueError for a label that has no colour.
    """
    ignored = labels == ignore_value
    known = np.where(ignored, 0, labels)
    if known.size and not 0 <= known.min() <= known.max() < len(colours):
        wrong = known.min() if known.min() < 0 else known.max()
        raise ValueError(f"label {wrong} has no colour; there are colours for {len(colours)}")
    table = np.asarray(colours, dtype=np.uint8).reshape(-1, 3)
    rgb = table[known]
    rgb[ignored] = _hatching(*labels.shape)[ignored]
    return Image.fromarray(rgb)


def _hatching(height: int, width: int) -> np.ndarray:
    """Return dark ground with diagonal lines, (H, W, 3), uint8."""
    diagonal = (np.arange(height)[:, None] + np.arange(width)[None, :]) % HATCH_PERIOD
    return np.where((diagonal < HATCH_WIDTH)[..., None], HATCH_LINE, HATCH_GROUND).astype(np.uint8)


def overlay(
    image: Image.Image,
    labels: np.ndarray,
    colours: Sequence[Colour],
    *,
    strength: float = 0.55,
    ignore_value: int = 255,
) -> Image.Image:
    """Return ``image`` tinted by the classes of ``labels`` (H, W); ignored pixels stay as they are.

    ``strength`` is the share of the class colour, 0 to 1. Raises ValueError if the sizes differ.
    """
    if labels.shape != (image.height, image.width):
        sizes = f"{labels.shape[1]} x {labels.shape[0]} and {image.width} x {image.height}"
        raise ValueError(f"label map and image differ in size: {sizes}")
    base = image.convert("RGB")
    tinted = Image.blend(base, paint(labels, colours, ignore_value), strength)
    return Image.composite(base, tinted, Image.fromarray(labels == ignore_value))
