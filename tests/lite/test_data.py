"""The built-in runtime's data: what the comparison with Detectron2 does not show."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hicl_d2.lite import data
from hicl_d2.lite.config import get_cfg
from hicl_d2.lite.data import detection_utils, samplers
from hicl_d2.lite.data import transforms as T
from hicl_d2.lite.utils import comm


@pytest.mark.parametrize("serialize", [True, False])
def test_list_gives_copies_of_its_elements(serialize: bool) -> None:
    elements = [{"a": [1]}, {"b": "x" * 1000}, {}]
    dataset = data.DatasetFromList(elements, serialize=serialize)
    assert len(dataset) == 3
    assert [dataset[i] for i in range(3)] == elements
    dataset[0]["a"].append(2)
    assert dataset[0] == {"a": [1]}


def test_list_without_copies_gives_its_elements() -> None:
    elements: list[dict[str, Any]] = [{}]
    assert data.DatasetFromList(elements, copy=False, serialize=False)[0] is elements[0]


def test_element_that_cannot_be_mapped_is_replaced() -> None:
    dataset = data.MapDataset(list(range(6)), lambda number: None if number == 2 else 10 * number)
    assert len(dataset) == 6
    assert dataset[3] == 30
    assert {dataset[2] for _ in range(20)} <= {0, 10, 30, 40, 50}


def _draws(record: dict[str, Any]) -> tuple[float, ...]:
    return np.random.rand(), random.random(), float(torch.rand(()))


def test_workers_draw_different_numbers_and_a_seed_repeats_them() -> None:
    def batches() -> list[Any]:
        loader = data.build_detection_train_loader(
            [{}] * 4, mapper=_draws, total_batch_size=2, aspect_ratio_grouping=False, num_workers=2, seed=1
        )
        return list(itertools.islice(iter(loader), 6))

    drawn = batches()
    assert len({sample for batch in drawn for sample in batch}) == 12
    assert batches() == drawn


def test_collate_function_is_applied_with_and_without_grouping() -> None:
    records = [{"width": 2, "height": 1}] * 4
    for grouping in (True, False):
        loader = data.build_detection_train_loader(
            records, mapper=None, total_batch_size=2, aspect_ratio_grouping=grouping, collate_fn=len
        )
        assert list(itertools.islice(iter(loader), 3)) == [2, 2, 2]


def test_batch_is_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("hicl_d2.lite.data.build.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = data.build_detection_train_loader(
            list(range(8)),
            mapper=None,
            sampler=samplers.TrainingSampler(8, shuffle=False, seed=0),
            total_batch_size=4,
            aspect_ratio_grouping=False,
        )
        shares.append(list(itertools.islice(iter(loader), 2)))
        with pytest.raises(AssertionError, match="total batch size 3 must be a multiple"):
            data.build_batch_data_loader([1], samplers.TrainingSampler(1, seed=0), 3)
    assert shares == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert list(samplers.InferenceSampler(5)) == [3, 4]


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
    inputs.apply_augmentations([T.Resize((20, 20)), T.RandomFlip(1.0)])
    assert inputs.boxes.tolist() == [[14.0, 2.0, 18.0, 10.0]]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (T, "RandomRotation"),
        (samplers, "RepeatFactorTrainingSampler"),
        (detection_utils, "annotations_to_instances"),
        (data, "datasets"),
    ],
)
def test_what_is_left_to_detectron2_says_so(module: Any, name: str) -> None:
    with pytest.raises(ImportError, match="needs Detectron2"):
        getattr(module, name)


class _Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1])


def test_instances_samplers_and_streams_are_left_to_detectron2() -> None:
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    actions = [
        lambda: data.build_detection_train_loader(cfg, dataset=[{}]),
        lambda: data.build_detection_train_loader(_Stream(), mapper=None, total_batch_size=1),
        lambda: data.get_detection_dataset_dicts("x", min_keypoints=1),
        lambda: data.DatasetMapper(get_cfg(), True)({"file_name": "x", "annotations": []}),
    ]
    for action in actions:
        with pytest.raises((ValueError, NotImplementedError), match="needs Detectron2"):
            action()
