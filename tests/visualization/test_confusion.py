"""The picture of a confusion matrix, looked at pixel by pixel."""

import numpy as np
import pytest

from hicl_d2.visualization.confusion import CELLS, RIGHT, WRONG, draw_confusion
from hicl_d2.visualization.sheet import MARGIN, PAPER


def cell(picture, row, column, classes):
    """Return the colour in the corner of a cell, clear of its number."""
    size = next(side for most, side in CELLS if classes <= most)
    array = np.asarray(picture)
    top = array.shape[0] - MARGIN - size * (classes - row)
    left = array.shape[1] - MARGIN - size * (classes - column)
    return tuple(array[top + 2, left + 2].tolist())


def test_cells_show_shares_of_the_row():
    counts = np.array([[50, 0, 0], [25, 0, 75], [0, 0, 0]])
    picture = draw_confusion(counts, ["a", "b", "c"])
    assert cell(picture, 0, 0, 3) == RIGHT
    assert cell(picture, 0, 1, 3) == PAPER
    half = tuple(round((p + w) / 2) for p, w in zip(PAPER, WRONG, strict=True))
    assert cell(picture, 1, 0, 3) == pytest.approx(half, abs=1)  # the root of a quarter
    assert cell(picture, 1, 1, 3) == PAPER
    assert {cell(picture, 2, column, 3) for column in range(3)} == {PAPER}


@pytest.mark.parametrize("classes", [2, 19, 60, 171])
def test_nothing_is_clipped_at_the_edges(classes):
    names = [f"a rather long name of class {index}, with synonyms" for index in range(classes)]
    array = np.asarray(draw_confusion(np.ones((classes, classes), dtype=int), names))
    for edge in (array[:4], array[-4:], array[:, :4], array[:, -4:]):
        assert (edge == 255).all()
