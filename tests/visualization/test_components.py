"""The picture of windows: what each colour stands for is in its legend."""

import numpy as np
import pytest
from PIL import Image

from hicl_d2.visualization.colours import Colour
from hicl_d2.visualization.components import (
    FATE_COLOURS,
    FEW,
    KEPT,
    PURITY,
    REMAINDER,
    ClassLevelPicture,
    EmbeddingPicture,
    LevelPicture,
    explain,
)

COLOURS: list[Colour] = [(10, 200, 40), (220, 60, 30)]
NO_POINTS, NO_NUMBERS = np.zeros((0, 2)), np.zeros(0, int)
NOTHING = EmbeddingPicture(NO_POINTS, NO_NUMBERS, NO_POINTS, NO_NUMBERS, NO_NUMBERS, 0.0, np.zeros((2, 2, 3)))


def level(rows: int, columns: int, side: int = 16) -> LevelPicture:
    fates = np.full((rows, columns), KEPT)
    fates[0, 0] = PURITY
    return LevelPicture(side // 4, side, side, np.zeros((rows, columns), int), fates)


def draw(size: tuple[int, int], *levels: LevelPicture) -> np.ndarray:
    labels = np.zeros(size[::-1], int)
    image = Image.new("RGB", size, (90, 90, 90))
    return np.asarray(explain("x", image, labels, labels, levels, NOTHING, ["a", "b"], COLOURS))


def has(sheet: np.ndarray, colour: Colour) -> bool:
    return bool((sheet == np.array(colour)).all(-1).any())


@pytest.mark.parametrize(
    ("size", "rows", "columns", "remains"),
    [((64, 48), 3, 4, False), ((72, 48), 3, 4, True), ((64, 60), 3, 4, True), ((12, 8), 0, 0, True)],
)
def test_what_no_window_covers_has_a_colour_and_a_key(
    size: tuple[int, int], rows: int, columns: int, remains: bool
) -> None:
    one = level(rows, columns) if rows else LevelPicture(4, 16, 16, *(np.zeros((0, 0), int),) * 2)
    assert one.leaves_a_remainder(size) is remains
    assert has(draw(size, one), REMAINDER) is remains  # the key's swatch is the colour itself


def test_overlapping_windows_cover_up_to_the_last_ones_end() -> None:
    overlapping = LevelPicture(4, 16, 8, np.zeros((2, 5), int), np.zeros((2, 5), int))
    assert overlapping.covered() == (48, 24)


def test_class_pooling_has_a_tile_for_each_cell_and_a_frame_for_each_window() -> None:
    classes = np.zeros((6, 8), int)
    fates = np.full((6, 8), KEPT)
    fates[:, 4:] = FEW
    one = ClassLevelPicture(4, 16, 16, classes, fates, cell=4, windows=(1, 2), candidates=3, kept=2)
    assert one.covered() == (32, 16)  # the lower two rows of cells are in no window
    assert one.leaves_a_remainder((32, 24))
    sheet = draw((32, 24), one)
    assert has(sheet, FATE_COLOURS[FEW])
    assert not has(sheet, FATE_COLOURS[PURITY])  # no cell met it, so it has no key
