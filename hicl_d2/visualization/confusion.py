"""The confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hicl_d2.visualization.colours import Colour
from hicl_d2.visualization.sheet import FAINT, INK, MARGIN, PAPER

# Side of a cell by the number of classes up to which it is used; the first shows numbers.
CELLS = ((30, 38), (80, 16), (10**6, 8))
# From no pixel to every pixel of a class: right ones on the diagonal, wrong ones off it.
RIGHT: Colour = (20, 110, 90)
WRONG: Colour = (196, 52, 38)
FRAME: Colour = (225, 225, 230)
NAME_LENGTH = 24
TITLE = ("row: true class", "column: predicted", "% of the row")


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw counts (K, K): a row per true class, each cell the share of the row's pixels, in percent.

    Classes without a true pixel have an empty row. Small shares are lifted (square root), or nothing beside the
    diagonal would show.
    """
    size = next(side for most, side in CELLS if len(names) <= most)
    with_numbers = size == CELLS[0][1]
    font = ImageFont.load_default(max(8, min(14, size - 2)))
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    names = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..." for name in names]
    title_font = ImageFont.load_default(13)
    room = round(max(max(map(font.getlength, names)), max(map(title_font.getlength, TITLE)))) + 12
    side = len(names) * size
    left = top = MARGIN + room
    picture = Image.new("RGB", (left + side + MARGIN, top + side + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(TITLE):
        draw.text((MARGIN, MARGIN + 18 * line), text, FAINT, title_font)
    _paste_cells(picture, share, size, (left, top))
    for index, name in enumerate(names):
        middle = top + index * size + size // 2
        draw.text((left - 6, middle), name, INK if total[index] else FAINT, font, anchor="rm")
        _paste_upright(picture, name, (left + index * size + size // 2, top - 6), font)
    if with_numbers:
        for row, column in zip(*(share >= 0.005).nonzero(), strict=True):
            place = left + column * size + size // 2, top + row * size + size // 2
            ink = PAPER if share[row, column] > 0.3 else INK
            draw.text(place, f"{100 * share[row, column]:.0f}", ink, font, anchor="mm")
    return picture


def _paste_cells(picture: Image.Image, share: np.ndarray, size: int, place: tuple[int, int]) -> None:
    lifted = np.sqrt(share)[..., None]
    colour = np.where(np.eye(len(share), dtype=bool)[..., None], RIGHT, WRONG)
    cells = (np.asarray(PAPER) * (1 - lifted) + colour * lifted).round().astype(np.uint8)
    pixels = cells.repeat(size, axis=0).repeat(size, axis=1)
    if size > CELLS[-1][1]:
        pixels[::size] = pixels[:, ::size] = FRAME
    picture.paste(Image.fromarray(pixels), place)


def _paste_upright(
    picture: Image.Image, text: str, foot: tuple[int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """Write ``text`` from below upwards, its middle over ``foot``."""
    _, _, right, bottom = (round(value) for value in font.getbbox(text))
    label = Image.new("RGB", (right + 2, bottom + 2), PAPER)
    ImageDraw.Draw(label).text((0, 0), text, INK, font)
    turned = label.rotate(90, expand=True)
    picture.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))
