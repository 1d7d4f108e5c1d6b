"""Boundary scores against their definitions, written out mask by mask and pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from hicl_d2.evaluation.boundary import BoundaryCounts

CLASSES = 4


def boundary_of(mask, distance):
    """Return what erosion with a square, the frame being outside, takes off a mask."""
    square = np.ones((3, 3), dtype=bool)
    return mask & ~binary_erosion(mask, square, iterations=distance, border_value=0)


def loop_boundary_iou(pairs, share):
    hits, union = np.zeros(CLASSES), np.zeros(CLASSES)
    for prediction, truth in pairs:
        distance = max(1, round(share * math.hypot(*truth.shape)))
        for label in range(CLASSES):
            one, other = (boundary_of(labels == label, distance) for labels in (truth, prediction))
            hits[label] += (one & other).sum()
            union[label] += (one | other).sum()
    return hits, union


def contour_points(labels, ignored):
    height, width = labels.shape
    points = []
    for y in range(height):
        for x in range(width):
            beside = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            beside = [(b, a) for b, a in beside if 0 <= b < height and 0 <= a < width and not ignored[b, a]]
            if not ignored[y, x] and any(labels[place] != labels[y, x] for place in beside):
                points.append((y, x, int(labels[y, x])))
    return points


def loop_boundary_f(pairs, share, ignore=255):
    """Return F of each class from pooled counts, distances in a double loop."""
    found = np.zeros((4, CLASSES))
    for prediction, truth in pairs:
        distance = max(1, round(share * math.hypot(*truth.shape)))
        ignored = truth == ignore
        lines = [contour_points(labels, ignored) for labels in (prediction, truth)]
        for side in (0, 1):
            for y, x, label in lines[side]:
                found[2 * side + 1, label] += 1
                found[2 * side, label] += any(
                    other == label and math.hypot(y - b, x - a) <= distance for b, a, other in lines[1 - side]
                )
    scores = []
    for hit, predicted, true_hit, true in found.T:
        precision, recall = hit / max(predicted, 1), true_hit / max(true, 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12) if true else math.nan)
    return scores


@st.composite
def label_pairs(draw, ignore):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(4, 13), st.integers(4, 13)))
    block = draw(st.integers(1, 5))

    def blocks():
        rough = generator.integers(0, CLASSES, (shape[0] // block + 1, shape[1] // block + 1))
        return np.kron(rough, np.ones((block, block), dtype=int))[: shape[0], : shape[1]].astype(np.uint8)

    pairs = []
    for _ in range(draw(st.integers(1, 2))):
        truth, prediction = blocks(), blocks()
        if ignore:
            truth[generator.random(shape) < 0.2] = 255
        pairs.append((prediction, truth))
    return pairs


def count(pairs, share):
    counts = BoundaryCounts(CLASSES, 255, share)
    for prediction, truth in pairs:
        counts.update(prediction, truth)
    return counts.scores(counts.counts)


@settings(max_examples=40, deadline=None)
@given(label_pairs(ignore=False), st.sampled_from([0.01, 0.08, 0.2]))
def test_boundary_iou_equals_eroding_each_mask(pairs, share):
    hits, union = loop_boundary_iou(pairs, share)
    in_truth = [any((truth == label).any() for _, truth in pairs) for label in range(CLASSES)]
    expected = [h / u if there else math.nan for h, u, there in zip(hits, union, in_truth, strict=True)]
    assert count(pairs, share)["BoundaryIoU"].tolist() == pytest.approx(expected, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(label_pairs(ignore=True), st.sampled_from([0.01, 0.12, 0.3]))
def test_boundary_f_equals_a_double_loop(pairs, share):
    assert count(pairs, share)["BoundaryF"].tolist() == pytest.approx(
        loop_boundary_f(pairs, share), nan_ok=True
    )


def test_a_shifted_edge_scores_by_its_distance():
    truth, prediction = np.zeros((100, 100), dtype=np.uint8), np.zeros((100, 100), dtype=np.uint8)
    truth[:, 50:], prediction[:, 53:] = 1, 1
    within = count([(prediction, truth)], 3 / math.hypot(100, 100))
    short = count([(prediction, truth)], 2 / math.hypot(100, 100))
    assert within["BoundaryF"][:2].tolist() == [1.0, 1.0]
    assert short["BoundaryF"][:2].tolist() == [0.0, 0.0]


def test_ignored_pixels_make_no_boundary_and_are_not_counted():
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[:, 20:] = 255
    prediction = np.where(truth == 255, 2, 0).astype(np.uint8)
    counts = BoundaryCounts(CLASSES, 255, 0.05)
    counts.update(prediction, truth)
    scores = counts.scores(counts.counts)
    assert math.isnan(scores["BoundaryF"][0])  # the only change of class is to what is ignored
    assert scores["BoundaryIoU"][0] == 1.0  # the frame
    # A frame of three pixels along three sides of 40 x 20.
    assert counts.counts[1].tolist() == [40 * 20 - 34 * 17, 0, 0, 0]
    assert counts.counts[2].tolist() == counts.counts[1].tolist()


def test_many_classes_and_reset():
    counts = BoundaryCounts(300, 65535, 0.02)
    truth = np.repeat(np.arange(300, dtype=np.int64)[None], 8, axis=0)
    counts.update(truth.astype(np.int64), truth)
    assert counts.scores(counts.counts)["BoundaryIoU"].tolist() == [1.0] * 300
    counts.reset()
    assert not counts.counts.any()
    assert counts.counts.dtype == torch.int64
