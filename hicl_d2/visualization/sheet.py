"""One sheet: image, truth and prediction side by side, with a legend of the classes that occur."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hicl_d2.visualization.colours import Colour, paint

# Panels are enlarged by a whole number until they are this wide, and reduced to fit the larger size.
SMALLEST_PANEL = 320
LARGEST_PANEL = 720

FONT_SIZE = 16
MARGIN = 16
GAP = 12
SWATCH = 18
LINE = 28
INK: Colour = (28, 28, 32)
FAINT: Colour = (120, 120, 128)
PAPER: Colour = (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Entry:
    """A row of the legend: the class (None for ignored pixels), its name and its IoU in this image."""

    label: int | None
    name: str
    score: str


def side_by_side(
    image: Image.Image,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    colours: Sequence[Colour],
    *,
    ignore_value: int = 255,
    title: str = "",
) -> Image.Image:
    """Return a sheet with ``image`` and the label maps ``truth`` and ``prediction``, both (H, W) of integers.

    Pixels with ``ignore_value`` are dark and hatched. The legend names the classes that occur in either map
    with their IoU in this image; the image's own mIoU is the mean over the classes in its truth. Raises
    ValueError if sizes differ or a label has no colour.
    """
    size = (image.height, image.width)
    if truth.shape != size or prediction.shape != size:
        raise ValueError(
            f"image, truth and prediction differ in size: {size}, {truth.shape}, {prediction.shape}"
        )
    iou = class_iou(truth, prediction, len(classes), ignore_value)
    present = iou[~np.isnan(iou)]
    score = f"mIoU {100 * present.mean():.1f} %" if present.size else "no truth"

    width, height = panel_size(image.width, image.height)
    resampling = Image.Resampling.LANCZOS if width < image.width else Image.Resampling.BICUBIC
    panels = [
        ("image", title, image.convert("RGB").resize((width, height), resampling)),
        ("truth", "", paint(_resize(truth, width, height), colours, ignore_value)),
        ("prediction", score, paint(_resize(prediction, width, height), colours, ignore_value)),
    ]
    entries = list(_entries(truth, prediction, classes, iou, ignore_value))
    return _compose(panels, entries, colours)


def class_iou(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_value: int) -> np.ndarray:
    """Return the IoU of each class in one image, (K,), 0 to 1; nan for a class that is not in the truth."""
    valid = truth != ignore_value
    true, predicted = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    in_truth = np.bincount(true, minlength=num_classes)[:num_classes]
    in_prediction = np.bincount(predicted, minlength=num_classes)[:num_classes]
    hits = np.bincount(true[true == predicted], minlength=num_classes)[:num_classes]
    union = in_truth + in_prediction - hits
    return np.where(in_truth > 0, hits / np.maximum(union, 1), np.nan)


def panel_size(width: int, height: int) -> tuple[int, int]:
    """Return the size at which an image of ``width`` x ``height`` is shown: small ones enlarged, large ones
    reduced.
    """
    factor = float(max(1, math.ceil(SMALLEST_PANEL / width)))
    factor = min(factor, LARGEST_PANEL / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return ``labels`` at another size, each pixel taken from the nearest one."""
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows[:, None], columns[None, :]]


def _entries(
    truth: np.ndarray, prediction: np.ndarray, classes: Sequence[str], iou: np.ndarray, ignore_value: int
) -> Iterator[Entry]:
    found = set(np.unique(truth).tolist()) | set(np.unique(prediction).tolist())
    for label in sorted(found - {ignore_value}):
        score = "not in truth" if np.isnan(iou[label]) else f"{100 * iou[label]:.1f} %"
        yield Entry(label, classes[label], score)
    if ignore_value in found:
        yield Entry(None, "ignored", "")


def _compose(
    panels: Sequence[tuple[str, str, Image.Image]], entries: Sequence[Entry], colours: Sequence[Colour]
) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    panel_width, panel_height = panels[0][2].size
    width = 2 * MARGIN + len(panels) * panel_width + (len(panels) - 1) * GAP
    column_width, columns = _columns(entries, width - 2 * MARGIN, font)
    rows = math.ceil(len(entries) / columns)
    top = MARGIN + LINE
    height = top + panel_height + GAP + rows * LINE + MARGIN

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (name, note, panel) in enumerate(panels):
        left = MARGIN + index * (panel_width + GAP)
        draw.text((left, MARGIN + LINE // 2 - 4), name, INK, font, anchor="lm")
        room = panel_width - draw.textlength(name, font) - GAP
        note = _shorten(note, room, font)
        draw.text(
            (left + panel_width, MARGIN + LINE // 2 - 4), note, INK if index else FAINT, font, anchor="rm"
        )
        sheet.paste(panel, (left, top))
    for index, entry in enumerate(entries):
        left = MARGIN + (index % columns) * column_width
        middle = top + panel_height + GAP + (index // columns) * LINE + LINE // 2
        _draw_entry(sheet, draw, (left, middle), entry, column_width, colours, font)
    return sheet


def _columns(entries: Sequence[Entry], width: int, font: Font) -> tuple[int, int]:
    """Return the width and number of the legend's columns: as many as fit the longest entry."""
    longest = max((font.getlength(f"{entry.name}  {entry.score}") for entry in entries), default=1)
    columns = max(1, min(len(entries), int(width // (SWATCH + 8 + longest + 2 * GAP))))
    return width // columns, columns


def _draw_entry(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    entry: Entry,
    width: int,
    colours: Sequence[Colour],
    font: Font,
) -> None:
    left, middle = place
    label = 0 if entry.label is None else entry.label
    ignored = 0 if entry.label is None else -1
    swatch = paint(np.full((SWATCH, SWATCH), label), colours, ignored)
    sheet.paste(swatch, (left, middle - SWATCH // 2))
    draw.rectangle((left, middle - SWATCH // 2, left + SWATCH - 1, middle + SWATCH // 2 - 1), outline=FAINT)
    text_left = left + SWATCH + 8
    score_width = font.getlength(f"  {entry.score}") if entry.score else 0
    name = _shorten(entry.name, width - SWATCH - 8 - score_width - GAP, font)
    draw.text((text_left, middle), name, INK, font, anchor="lm")
    draw.text((text_left + font.getlength(f"{name}  "), middle), entry.score, FAINT, font, anchor="lm")


def _shorten(text: str, room: float, font: Font) -> str:
    """Return ``text``, or its beginning with dots if it is longer than ``room`` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..." if text else ""
