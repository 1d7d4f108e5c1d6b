"""A legend: the classes and their colours."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from hicl_d2.visualization.colours import Colour
from hicl_d2.visualization.sheet import FAINT, INK, LINE, MARGIN, PAPER, SWATCH

ROWS = 30


def draw_legend(classes: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """Return a picture of the classes in the order of their numbers, in columns of 30."""
    font = ImageFont.load_default(15)
    texts = [f"{number}  {name}" for number, name in enumerate(classes)]
    column = round(max(map(font.getlength, texts))) + SWATCH + 8 + 2 * MARGIN
    rows, columns = min(len(texts), ROWS), math.ceil(len(texts) / ROWS)
    picture = Image.new("RGB", (MARGIN + columns * column, 2 * MARGIN + rows * LINE), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, text in enumerate(texts):
        left = MARGIN + number // ROWS * column
        middle = MARGIN + number % ROWS * LINE + LINE // 2
        box = (left, middle - SWATCH // 2, left + SWATCH, middle + SWATCH // 2)
        draw.rectangle(box, fill=tuple(colours[number]), outline=FAINT)
        draw.text((left + SWATCH + 8, middle), text, INK, font, anchor="lm")
    return picture
