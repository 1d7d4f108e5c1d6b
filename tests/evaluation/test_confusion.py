"""The matrix against counting in a loop, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.command.errors import InputError
from hicl_d2.evaluation import ConfusionMatrix
from tests.support.process_group import in_process_group


def loop_counts(prediction, truth, num_classes, ignore_value):
    counts = [[0] * num_classes for _ in range(num_classes)]
    for predicted, true in zip(prediction.reshape(-1).tolist(), truth.reshape(-1).tolist(), strict=True):
        if true != ignore_value:
            counts[true][predicted] += 1
    return counts


def loop_scores(counts):
    """Return iou and accuracy per class from the definitions; nan for a class without truth."""
    size = len(counts)
    iou, accuracy = [], []
    for c in range(size):
        true = sum(counts[c])
        predicted = sum(counts[t][c] for t in range(size))
        iou.append(counts[c][c] / (true + predicted - counts[c][c]) if true else math.nan)
        accuracy.append(counts[c][c] / true if true else math.nan)
    return iou, accuracy


@st.composite
def label_maps(draw):
    """Draw classes, ignored value, and a stream of prediction and truth of any shape, type and ignore
    pattern.
    """
    num_classes = draw(st.integers(1, 20) | st.sampled_from([171, 256, 300]))
    ignore_value = draw(st.sampled_from([255, 0, -1, 65535, num_classes]))
    dtypes = [torch.int16, torch.int32, torch.int64] if ignore_value < 60000 else [torch.int32, torch.int64]
    if num_classes <= 256 and 0 <= ignore_value <= 255:
        dtypes.append(torch.uint8)
    dtype = draw(st.sampled_from(dtypes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ignored_share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    stream = []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
        prediction = generator.integers(0, num_classes, shape)
        truth = np.where(
            generator.random(shape) < ignored_share, ignore_value, generator.integers(0, num_classes, shape)
        )
        stream.append((torch.from_numpy(prediction), torch.from_numpy(truth).to(dtype)))
    return num_classes, ignore_value, stream


@settings(max_examples=80, deadline=None)
@given(label_maps())
def test_counts_and_scores_equal_a_loop(case):
    num_classes, ignore_value, stream = case
    matrix = ConfusionMatrix(num_classes, ignore_value)
    for prediction, truth in stream:
        matrix.update(prediction, truth)

    everything = [torch.cat([pair[side].long().flatten() for pair in stream]) for side in (0, 1)]
    counts = loop_counts(*everything, num_classes, ignore_value)
    assert matrix.counts.tolist() == counts
    assert matrix.counts.dtype == torch.int64

    iou, accuracy = loop_scores(counts)
    assert matrix.iou().tolist() == pytest.approx(iou, nan_ok=True)
    assert matrix.accuracy().tolist() == pytest.approx(accuracy, nan_ok=True)
    present = [c for c in range(num_classes) if sum(counts[c])]
    total = sum(map(sum, counts))
    if not total:
        assert math.isnan(matrix.mean_iou())
        assert math.isnan(matrix.frequency_weighted_iou())
        assert math.isnan(matrix.pixel_accuracy())
        return
    assert matrix.mean_iou() == pytest.approx(sum(iou[c] for c in present) / len(present))
    assert matrix.mean_accuracy() == pytest.approx(sum(accuracy[c] for c in present) / len(present))
    weighted = sum(iou[c] * sum(counts[c]) / total for c in present)
    assert matrix.frequency_weighted_iou() == pytest.approx(weighted)
    assert matrix.pixel_accuracy() == pytest.approx(sum(counts[c][c] for c in present) / total)


def test_a_class_without_truth_is_left_out_of_the_mean_even_if_predicted():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8))
    assert matrix.iou()[:2].tolist() == [0.5, 0.5]
    assert math.isnan(matrix.iou()[2])
    assert matrix.mean_iou() == 0.5


def test_batches_equal_single_images():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 5, (4, 9, 7), generator=generator)
    truth = torch.randint(0, 5, (4, 9, 7), generator=generator).byte()
    batch, single = ConfusionMatrix(5), ConfusionMatrix(5)
    batch.update(prediction, truth)
    for index in range(4):
        single.update(prediction[index], truth[index])
    assert torch.equal(batch.counts, single.counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_label_outside_the_classes_is_an_error_that_names_it_and_counts_nothing(dtype):
    matrix = ConfusionMatrix(11)
    truth = torch.tensor([[0, 12, 255], [12, 3, 10]], dtype=dtype)
    with pytest.raises(
        InputError, match=r"label value 12 \(2 pixels\) is none of the classes 0\.\.10"
    ) as error:
        matrix.update(torch.zeros(2, 3, dtype=torch.int64), truth)
    assert "\n" not in str(error.value)
    assert matrix.counts.sum() == 0


def test_a_negative_label_is_an_error():
    with pytest.raises(InputError, match="label value -1 "):
        ConfusionMatrix(2).update(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, -1]]))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (torch.full((2, 2), 3), "predicted class 3 is outside"),
        (torch.full((2, 2), -1), "predicted class -1 is outside"),
        (torch.zeros(2, 2), "not scores"),
        (torch.zeros(2, 3, dtype=torch.int64), "same shape"),
    ],
)
def test_a_prediction_that_does_not_fit_is_refused(prediction, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(prediction, torch.zeros(2, 2, dtype=torch.uint8))


def test_empty_images_and_reset():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.uint8))
    assert math.isnan(matrix.mean_iou())
    matrix.update(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.uint8))
    assert matrix.counts.tolist() == [[4, 0], [0, 0]]
    matrix.reset()
    assert matrix.counts.sum() == 0


@in_process_group
def _reduce_in_process(rank, folder):
    matrix = ConfusionMatrix(3)
    if rank == 0:  # the other process has seen no image at all
        matrix.update(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))
    first, second = matrix.reduce(), matrix.reduce()
    torch.save([matrix.counts, first.counts, second.counts], f"{folder}/{rank}.pt")


def test_reduce_adds_the_processes_once_and_keeps_their_own_counts(tmp_path):
    mp.spawn(_reduce_in_process, (str(tmp_path),), nprocs=2)
    expected = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    for rank in range(2):
        own, first, second = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(own, expected if rank == 0 else torch.zeros_like(expected))
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
