"""The picture that explains the method: which windows became components, and where they lie in the embedding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hicl_d2.visualization.colours import Colour, paint
from hicl_d2.visualization.sheet import FAINT, GAP, INK, LINE, MARGIN, PAPER, SWATCH

# What became of a candidate, or of a cell.
KEPT, COVERAGE, PURITY, CONFIDENCE, FEW = 0, 1, 2, 3, 4
FATES = (
    "kept: colour of its class",
    "pruned: too little labelled",
    "pruned: not pure",
    "pruned: confidence",
    "pruned: few cells of its class in the window",
)
SHORT_FATES = ("kept", "coverage", "purity", "confidence", "of few cells")
FATE_COLOURS: tuple[Colour, ...] = (
    (40, 40, 46),
    (30, 30, 34),
    (240, 60, 130),
    (250, 150, 20),
    (250, 150, 20),
)
# The rest at the right and at the bottom, which no whole window of a level covers.
REMAINDER: Colour = (186, 190, 204)
PANEL = 420
PANELS_IN_A_ROW = 3
# Radius of a point in the embedding map, for pixels, and for components of the first to the last level.
PIXEL_RADIUS, SMALLEST_RADIUS, LARGEST_RADIUS = 1.6, 3.5, 8.0
SMOOTHING = 3


@dataclass(frozen=True)
class LevelPicture:
    """One level: the window's side and distance in pixels of the image, and class and fate of each window, (rows, columns)."""

    window: int
    side: int
    step: int
    classes: np.ndarray
    fates: np.ndarray

    def covered(self) -> tuple[int, int]:
        """Return the width and height of the image that the windows cover, in pixels."""
        rows, columns = self.extent()
        return self._reach(columns), self._reach(rows)

    def extent(self) -> tuple[int, int]:
        """Return how many rows and columns of windows there are."""
        rows, columns = self.fates.shape
        return rows, columns

    def tile(self) -> tuple[int, int]:
        """Return side and distance, in pixels, of what class and fate are given of."""
        return self.side, self.step

    def counts(self) -> dict[int, int]:
        """Return how many candidates met each fate."""
        return {fate: int((self.fates == fate).sum()) for fate in (KEPT, COVERAGE, PURITY, CONFIDENCE)}

    def _reach(self, windows: int) -> int:
        return (windows - 1) * self.step + self.side if windows else 0

    def leaves_a_remainder(self, size: tuple[int, int]) -> bool:
        """Return whether a part of an image of ``size`` (width, height) is in no window."""
        return any(covered < side for covered, side in zip(self.covered(), size, strict=True))


@dataclass(frozen=True)
class ClassLevelPicture(LevelPicture):
    """One level of class pooling, with class and fate of each cell, (h, w).

    Attributes:
        cell: side of a cell in pixels of the image.
        windows: rows and columns of windows.
        candidates: windows and classes with a cell of the class.
        kept: those of them that are components.
    """

    cell: int
    windows: tuple[int, int]
    candidates: int
    kept: int

    def extent(self) -> tuple[int, int]:
        return self.windows

    def tile(self) -> tuple[int, int]:
        return self.cell, self.cell

    def counts(self) -> dict[int, int]:
        return {KEPT: self.kept, FEW: self.candidates - self.kept}


@dataclass(frozen=True)
class EmbeddingPicture:
    """Points of the embedding in its first two principal directions.

    Attributes:
        pixels: (N, 2); pixel_classes: (N,).
        components: (M, 2); component_classes: (M,); component_levels: (M,), from 0.
        explained: share of the variance in the two directions.
        dense: (h, w, 3), 0 to 1: the first three directions of every cell as red, green and blue.
    """

    pixels: np.ndarray
    pixel_classes: np.ndarray
    components: np.ndarray
    component_classes: np.ndarray
    component_levels: np.ndarray
    explained: float
    dense: np.ndarray


def explain(
    title: str,
    image: Image.Image,
    truth: np.ndarray,
    prediction: np.ndarray,
    levels: Sequence[LevelPicture],
    embedding: EmbeddingPicture,
    classes: Sequence[str],
    colours: Sequence[Colour],
    *,
    ignore_value: int = 255,
) -> Image.Image:
    """Return one sheet: image, truth, prediction, the windows of every level, and the embedding.

    ``truth`` and ``prediction`` are (H, W) at the size of ``image``.
    """
    scale = PANEL / image.width
    size = PANEL, max(1, round(image.height * scale))
    ignored = np.where(truth == ignore_value, -1, truth.astype(np.int64))
    panels = [
        (title, image.resize(size, Image.Resampling.BICUBIC)),
        ("truth", paint(ignored, colours, -1).resize(size, Image.Resampling.NEAREST)),
        ("prediction", paint(prediction, colours, -1).resize(size, Image.Resampling.NEAREST)),
    ]
    for level in levels:
        counts = level.counts()
        panels.append(
            (
                f"window {level.window} ({level.side} px): {counts[KEPT]} of {sum(counts.values())} kept",
                _draw_level(image, level, colours).resize(size, Image.Resampling.LANCZOS),
            )
        )
    dense = Image.fromarray((embedding.dense * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    panels.append(("embedding of every cell (three directions as RGB)", dense))
    present = sorted({int(c) for c in np.unique(ignored) if c >= 0} | {int(c) for c in np.unique(prediction)})
    cloud = _draw_cloud(embedding, colours, (2 * PANEL + GAP, PANEL + 60))
    has_remainder = any(level.leaves_a_remainder(image.size) for level in levels)
    return _compose(panels, cloud, embedding, levels, present, classes, colours, has_remainder)


def _draw_level(image: Image.Image, level: LevelPicture, colours: Sequence[Colour]) -> Image.Image:
    """Draw every window, or its cells, over the dimmed image: filled with its class where kept, with its fate elsewhere."""
    factor = 2
    side, step = (factor * pixels for pixels in level.tile())
    inset = 1 if side > 8 else 0
    base = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.45)
    base = base.resize((image.width * factor, image.height * factor))
    fill = base.copy()
    draw = ImageDraw.Draw(fill)
    for (row, column), fate in np.ndenumerate(level.fates):
        left, top = column * step, row * step
        box = (left + inset, top + inset, left + side - 1 - inset, top + side - 1 - inset)
        colour = colours[int(level.classes[row, column])] if fate == KEPT else FATE_COLOURS[fate]
        draw.rectangle(box, fill=tuple(colour))
    right, bottom = (factor * side for side in level.covered())
    for box in ((right, 0, base.width, base.height), (0, bottom, base.width, base.height)):
        if box[0] < base.width and box[1] < base.height:
            draw.rectangle(box, fill=REMAINDER)
    mixed = Image.blend(base, fill, 0.72)
    draw = ImageDraw.Draw(mixed)
    for (row, column), fate in np.ndenumerate(level.fates):
        if fate == KEPT or side <= 24:
            continue
        left, top = column * step, row * step
        end = side - 4
        draw.line((left + 3, top + 3, left + end, top + end), fill=FATE_COLOURS[fate], width=2)
    if level.tile() != (level.side, level.step):
        rows, columns = level.extent()
        for row, column in np.ndindex(rows, columns):
            left, top = column * level.step * factor, row * level.step * factor
            draw.rectangle((left, top, left + level.side * factor, top + level.side * factor), outline=PAPER)
    return mixed


def _draw_cloud(embedding: EmbeddingPicture, colours: Sequence[Colour], size: tuple[int, int]) -> Image.Image:
    """Draw pixels as dots and components as rings with a centre, larger for larger windows."""
    width, height = size[0] * SMOOTHING, size[1] * SMOOTHING
    picture = Image.new("RGB", (width, height), (250, 250, 251))
    draw = ImageDraw.Draw(picture)
    everything = np.concatenate([embedding.pixels, embedding.components])
    if len(everything):
        low, high = np.percentile(everything, [0.5, 99.5], axis=0)
    else:
        low, high = np.zeros(2), np.ones(2)
    span = np.maximum(high - low, 1e-9)
    border = 24 * SMOOTHING

    def place(point: np.ndarray) -> tuple[float, float]:
        share = ((point - low) / span).clip(-0.02, 1.02)
        return border + share[0] * (width - 2 * border), border + (1 - share[1]) * (height - 2 * border)

    for point, label in zip(embedding.pixels, embedding.pixel_classes, strict=True):
        _dot(draw, place(point), PIXEL_RADIUS * SMOOTHING, tuple(colours[label]), None)
    levels = max(int(embedding.component_levels.max(initial=0)), 1)
    for index in np.argsort(-embedding.component_levels, kind="stable"):
        level = embedding.component_levels[index]
        radius = SMALLEST_RADIUS + (LARGEST_RADIUS - SMALLEST_RADIUS) * level / levels
        colour = tuple(colours[embedding.component_classes[index]])
        _dot(draw, place(embedding.components[index]), radius * SMOOTHING, colour, INK)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _dot(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    fill: tuple[int, ...],
    outline: Colour | None,
) -> None:
    x, y = centre
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline, width=SMOOTHING
    )


def _compose(
    panels: Sequence[tuple[str, Image.Image]],
    cloud: Image.Image,
    embedding: EmbeddingPicture,
    levels: Sequence[LevelPicture],
    present: Sequence[int],
    classes: Sequence[str],
    colours: Sequence[Colour],
    has_remainder: bool,
) -> Image.Image:
    font = ImageFont.load_default(15)
    rows = math.ceil(len(panels) / PANELS_IN_A_ROW)
    height = panels[0][1].height + LINE
    width = 2 * MARGIN + PANELS_IN_A_ROW * PANEL + (PANELS_IN_A_ROW - 1) * GAP
    bottom = MARGIN + rows * (height + GAP)
    key_left = MARGIN + cloud.width + 2 * GAP
    fates = sorted({int(fate) for level in levels for fate in np.unique(level.fates)} - {KEPT})
    key_rows = len(present) + len(fates) + len(levels) + 4 + has_remainder
    sheet = Image.new("RGB", (width, bottom + max(cloud.height + LINE, key_rows * 24) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (text, panel) in enumerate(panels):
        left = MARGIN + index % PANELS_IN_A_ROW * (PANEL + GAP)
        top = MARGIN + index // PANELS_IN_A_ROW * (height + GAP)
        draw.text((left, top + LINE // 2 - 2), text, INK, font, anchor="lm")
        sheet.paste(panel, (left, top + LINE))
    text = (
        f"embedding: pixels (dots) and kept components (rings, larger for larger windows), first two principal "
        f"directions, {100 * embedding.explained:.0f} % of the variance"
    )
    draw.text((MARGIN, bottom + LINE // 2 - 2), text, INK, font, anchor="lm")
    sheet.paste(cloud, (MARGIN, bottom + LINE))
    middle = bottom + LINE + 12
    for label in present:
        _key(draw, (key_left, middle), tuple(colours[label]), classes[label], font)
        middle += 24
    middle += 16
    for fate in fates:
        _key(draw, (key_left, middle), FATE_COLOURS[fate], FATES[fate], font)
        middle += 24
    if has_remainder:
        _key(draw, (key_left, middle), REMAINDER, "no window: it would leave the image", font)
        middle += 24
    middle += 16
    for level in levels:
        pruned = ", ".join(
            f"{count} {SHORT_FATES[fate]}" for fate, count in level.counts().items() if fate != KEPT
        )
        draw.text(
            (key_left, middle),
            f"w{level.window}: pruned {pruned}",
            FAINT,
            ImageFont.load_default(13),
            anchor="lm",
        )
        middle += 22
    return sheet


def _key(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    colour: tuple[int, ...],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, middle = place
    box = (left, middle - SWATCH // 2, left + SWATCH, middle + SWATCH // 2)
    draw.rectangle(box, fill=colour, outline=FAINT)
    draw.text((left + SWATCH + 8, middle), text, INK, font, anchor="lm")
