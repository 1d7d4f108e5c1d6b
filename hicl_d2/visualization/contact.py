"""A contact sheet: images of a data set with their labels laid over, and the classes by share."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hicl_d2.visualization.colours import Colour, overlay, paint
from hicl_d2.visualization.sheet import FAINT, GAP, INK, LINE, MARGIN, PAPER, SWATCH, _shorten

THUMBNAIL = 300
COLUMNS = 4
BAR = 120
FONT_SIZE = 14


def contact_sheet(
    title: str,
    samples: Sequence[tuple[str, Image.Image, np.ndarray]],
    classes: Sequence[str],
    colours: Sequence[Colour],
    shares: Sequence[float],
    *,
    ignore_value: int = 255,
) -> Image.Image:
    """Return one sheet of ``samples`` (name, image, label map) and the ``shares`` of the classes (0 to 1).

    Labels are laid over the image; ignored pixels are hatched. Labels without a colour are shown as ignored.
    """
    font = ImageFont.load_default(FONT_SIZE)
    tiles = [_tile(*sample, colours, ignore_value) for sample in samples]
    rows = math.ceil(len(tiles) / COLUMNS)
    tile_height = max((tile.height for tile in tiles), default=0)
    width = 2 * MARGIN + COLUMNS * THUMBNAIL + (COLUMNS - 1) * GAP
    legend_columns = 3
    legend_rows = math.ceil(len(classes) / legend_columns)
    top = MARGIN + LINE
    legend_top = top + rows * (tile_height + LINE) + GAP
    sheet = Image.new("RGB", (width, legend_top + legend_rows * (LINE - 4) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _shorten(title, width - 2 * MARGIN, font), INK, ImageFont.load_default(17))
    for index, (tile, (name, _, _)) in enumerate(zip(tiles, samples, strict=True)):
        left = MARGIN + (index % COLUMNS) * (THUMBNAIL + GAP)
        upper = top + (index // COLUMNS) * (tile_height + LINE)
        sheet.paste(tile, (left, upper))
        draw.text((left, upper + tile_height + 4), _shorten(name, THUMBNAIL, font), FAINT, font)
    column_width = (width - 2 * MARGIN) // legend_columns
    greatest = max(max(shares, default=0), 1e-12)
    for place, number in enumerate(sorted(range(len(classes)), key=lambda n: -shares[n])):
        left = MARGIN + (place // legend_rows) * column_width
        middle = legend_top + (place % legend_rows) * (LINE - 4) + LINE // 2
        box = (left, middle - SWATCH // 2, left + SWATCH, middle + SWATCH // 2)
        draw.rectangle(box, fill=tuple(colours[number]), outline=FAINT)
        room = column_width - SWATCH - BAR - 90
        ink = INK if shares[number] else FAINT
        draw.text((left + SWATCH + 8, middle), _shorten(classes[number], room, font), ink, font, anchor="lm")
        bar_left = left + column_width - BAR - 74
        length = round(BAR * shares[number] / greatest)
        if length:
            draw.rectangle((bar_left, middle - 5, bar_left + length, middle + 5), fill=tuple(colours[number]))
        draw.text(
            (left + column_width - GAP, middle), f"{100 * shares[number]:.2f} %", ink, font, anchor="rm"
        )
    return sheet


def _tile(
    _: str, image: Image.Image, labels: np.ndarray, colours: Sequence[Colour], ignore_value: int
) -> Image.Image:
    scale = THUMBNAIL / image.width
    height = max(1, min(round(image.height * scale), 2 * THUMBNAIL))
    size = THUMBNAIL, height
    small = image.convert("RGB").resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(THUMBNAIL) + 0.5) * labels.shape[1] / THUMBNAIL).astype(int)
    shown = labels[rows[:, None], columns[None, :]].astype(np.int64)
    unknown = -1
    shown[(shown == ignore_value) | (shown >= len(colours))] = unknown
    tinted = overlay(small, shown, colours, strength=0.6, ignore_value=unknown)
    hatched = paint(np.full_like(shown, unknown), colours, unknown)
    return Image.composite(Image.blend(small, hatched, 0.6), tinted, Image.fromarray(shown == unknown))
