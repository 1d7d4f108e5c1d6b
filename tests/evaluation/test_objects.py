"""Accuracy by object size against labelling each class on its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label as label_regions

from hicl_d2.evaluation import objects
from hicl_d2.evaluation.objects import ObjectSizeCounts, runs_and_regions

CLASSES = 3


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)),
    st.integers(0, 2**31),
)
def test_counts_equal_labelling_class_by_class(truth, seed):
    truth = np.where(truth == 3, 255, truth)
    prediction = np.random.default_rng(seed).integers(0, CLASSES, truth.shape)
    limits = {"small": 0, "medium": 4, "large": 9}
    expected = np.zeros((3, CLASSES, 2), dtype=int)
    for c in range(CLASSES):
        regions, number = label_regions(truth == c)
        for region in range(1, number + 1):
            inside = regions == region
            size = sum(inside.sum() >= limit for limit in limits.values()) - 1
            expected[size, c] += ((prediction == c) & inside).sum(), inside.sum()
    counts = ObjectSizeCounts(CLASSES, 255)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "SIZES", limits)
        counts.update(prediction, truth)
    assert counts.counts.tolist() == expected.tolist()


def test_scores_are_shares_of_each_size():
    truth = np.zeros((120, 200), dtype=np.uint8)
    truth[:, 100:] = 255
    truth[:20, :20] = 1  # 400 pixels: small
    prediction = truth.copy()
    prediction[:10, :20] = 0
    counts = ObjectSizeCounts(2, 255)
    counts.update(prediction, truth)
    scores = counts.scores(counts.counts)
    assert list(scores) == ["ACC_small", "ACC_medium", "ACC_large"]
    assert scores["ACC_small"][1] == 0.5
    assert scores["ACC_large"][0] == 1.0
    assert all(math.isnan(scores["ACC_medium"][c]) for c in range(2))


def test_a_spiral_is_one_region():
    spiral = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=np.uint8)
    starts, region = runs_and_regions(spiral)
    assert len(set(region.tolist())) == 2
    assert spiral.ravel()[starts].tolist()[:3] == [1, 0, 1]
