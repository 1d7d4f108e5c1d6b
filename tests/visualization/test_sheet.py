"""Sheets and colours, looked at pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from hicl_d2.visualization import overlay, paint, palette, side_by_side
from hicl_d2.visualization.colours import HATCH_GROUND, HATCH_LINE
from hicl_d2.visualization.sheet import GAP, LINE, MARGIN, class_iou, panel_size

CLASSES = ["sky", "road", "car"]
COLOURS = [(10, 20, 230), (200, 100, 0), (0, 150, 60)]


def pixels(picture):
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}


def test_palette_is_distinct_repeatable_and_readable():
    for size in (1, 19, 171):
        colours = palette(size)
        assert len(set(colours)) == size
        assert colours == palette(size)
        assert all(max(colour) > 100 and min(colour) < 240 for colour in colours)


def test_paint_gives_each_class_its_colour_and_hatches_what_is_ignored():
    labels = np.full((16, 16), 255, dtype=np.uint8)
    labels[:4], labels[4:8] = 0, 2
    picture = np.asarray(paint(labels, COLOURS))
    assert pixels(picture[:4]) == {COLOURS[0]}
    assert pixels(picture[4:8]) == {COLOURS[2]}
    assert pixels(picture[8:]) == {HATCH_GROUND, HATCH_LINE}


@pytest.mark.parametrize("label", [3, 254, -2])
def test_a_label_without_a_colour_is_refused(label):
    with pytest.raises(ValueError, match=f"label {label} has no colour"):
        paint(np.array([[0, label]]), COLOURS)


def test_overlay_tints_classes_and_leaves_ignored_pixels():
    image = Image.new("RGB", (4, 2), (100, 100, 100))
    labels = np.array([[0, 0, 0, 0], [255, 255, 255, 255]])
    picture = np.asarray(overlay(image, labels, COLOURS, strength=0.5))
    assert picture[0, 0].tolist() == pytest.approx([55, 60, 165], abs=1)
    assert pixels(picture[1:]) == {(100, 100, 100)}
    with pytest.raises(ValueError, match="differ in size"):
        overlay(image, labels.T, COLOURS)


def test_class_iou_follows_from_the_definition():
    truth = np.array([[0, 0, 1, 255]])
    iou = class_iou(truth, np.array([[0, 1, 1, 2]]), 3, 255)
    assert iou[:2].tolist() == [0.5, 0.5]
    assert np.isnan(iou[2])


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (320, 320)),
        ((480, 360), (480, 360)),
        ((2048, 1024), (720, 360)),
        ((100, 700), (103, 720)),
        ((1, 5000), (1, 720)),
    ],
)
def test_panels_are_of_a_readable_size(size, shown):
    assert panel_size(*size) == shown


def test_the_sheet_shows_three_panels_at_their_places():
    truth = np.zeros((300, 400), dtype=np.uint8)
    truth[:, 200:] = 1
    prediction = np.full((300, 400), 2)
    image = Image.new("RGB", (400, 300), (1, 2, 3))
    sheet = np.asarray(side_by_side(image, truth, prediction, CLASSES, COLOURS, title="name"))
    top = MARGIN + LINE
    panels = [
        sheet[top : top + 300, left : left + 400] for left in (MARGIN + i * (400 + GAP) for i in range(3))
    ]
    assert pixels(panels[0]) == {(1, 2, 3)}
    assert pixels(panels[1][:, :200]) == {COLOURS[0]}
    assert pixels(panels[1][:, 200:]) == {COLOURS[1]}
    assert pixels(panels[2]) == {COLOURS[2]}
    assert sheet.shape[1] == 3 * 400 + 2 * GAP + 2 * MARGIN


def test_the_legend_has_the_classes_that_occur_and_only_those():
    truth = np.zeros((340, 400), dtype=np.uint8)
    image = Image.new("RGB", (400, 340))

    def legend(prediction, truth=truth):
        sheet = np.asarray(side_by_side(image, truth, prediction, CLASSES, COLOURS))
        return pixels(sheet[MARGIN + LINE + 340 :])

    assert COLOURS[0] in legend(truth)
    assert not {COLOURS[1], COLOURS[2], HATCH_LINE} & legend(truth)
    assert {COLOURS[0], COLOURS[2]} <= legend(np.full_like(truth, 2))
    assert HATCH_LINE in legend(np.full_like(truth, 1), truth=np.full_like(truth, 255))


@pytest.mark.parametrize("width", [330, 480, 1000])
def test_the_legend_is_never_clipped(width):
    """Every entry ends before the sheet does: the margin around everything stays empty."""
    names = [
        f"a class with quite a long name, number {index}, and more words after it" for index in range(40)
    ]
    truth = (np.arange(340)[:, None] * 40 // 340 + np.zeros((1, width), dtype=int)).astype(np.uint8)
    image = Image.new("RGB", (width, 340), (9, 9, 9))
    title = "a name far longer than its panel is wide " * 5
    sheet = np.asarray(side_by_side(image, truth, truth, names, palette(40), title=title))
    for edge in (
        sheet[: MARGIN // 2],
        sheet[-MARGIN // 2 :],
        sheet[:, : MARGIN // 2],
        sheet[:, -MARGIN // 2 :],
    ):
        assert (edge == 255).all()


def test_an_image_without_truth_is_still_shown():
    nothing = np.full((20, 30), 255, dtype=np.uint8)
    assert (
        side_by_side(Image.new("L", (30, 20)), nothing, np.zeros((20, 30), int), CLASSES, COLOURS).width > 900
    )


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        side_by_side(Image.new("RGB", (4, 4)), np.zeros((4, 4), int), np.zeros((4, 5), int), CLASSES, COLOURS)
