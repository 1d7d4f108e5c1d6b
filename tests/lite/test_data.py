"""The built-in runtime's data: what the comparison with Detectron2 does not show."""

import itertools

import numpy as np
import pytest

from hicl_d2.lite.data import samplers
from hicl_d2.lite.data import transforms as T
from hicl_d2.lite.utils import comm


def test_processes_share_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    trained, tested = [], []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        trained.append(list(itertools.islice(samplers.TrainingSampler(8, shuffle=False, seed=0), 4)))
        tested.append(list(samplers.InferenceSampler(5)))
    assert trained == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert tested == [[0, 1, 2], [3, 4]]


def test_wrong_crop_type_is_refused() -> None:
    with pytest.raises(AssertionError, match="absolute_range"):
        T.RandomCrop("square", (1, 1))


def test_flip_has_one_direction() -> None:
    for both in (True, False):
        with pytest.raises(ValueError, match="either horizontally or vertically"):
            T.RandomFlip(horizontal=both, vertical=both)


class _ByLabels(T.Augmentation):
    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        return T.CropTransform(0, 0, int(sem_seg.max()), image.shape[0])


class _Lost(T.Augmentation):
    def get_transform(self, image: np.ndarray, depth: np.ndarray) -> T.Transform:
        return T.NoOpTransform()


def test_own_augmentation_is_given_the_inputs_that_it_names() -> None:
    inputs = T.AugInput(np.zeros((4, 6, 3), np.uint8), sem_seg=np.full((4, 6), 2, np.uint8))
    assert isinstance(_ByLabels()(inputs), T.CropTransform)
    assert inputs.image.shape == (4, 2, 3)
    with pytest.raises(AttributeError, match="depth"):
        _Lost()(inputs)


def test_boxes_follow_the_image() -> None:
    inputs = T.AugInput(np.zeros((10, 20, 3), np.uint8), boxes=np.array([[2.0, 1.0, 6.0, 5.0]]))
    T.AugmentationList([T.ResizeTransform(10, 20, 20, 20), T.RandomFlip(1.0)])(inputs)
    assert inputs.boxes.tolist() == [[14.0, 2.0, 18.0, 10.0]]
