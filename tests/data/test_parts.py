"""The generated data set: the same everywhere, whole or absent, and not to be solved by looking at pixels alone."""

import multiprocessing
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets import parts
from hicl_d2.data.datasets.parts_paint import SIZE, Draws
from hicl_d2.data.datasets.parts_scene import CLASSES, IGNORE, draw_scene
from hicl_d2.data.datasets.registry import load_records
from tests.test_reading import refusal

# Checksums of image and labels of three scenes. Other numbers mean another data set: raise its version.
SCENES = {
    (0, 0, 0): (3412086209, 1793719849),
    (0, 0, 239): (2325628540, 3061574434),
    (0, 1, 0): (108597638, 1072499135),
}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few scenes where the whole data set is made."""
    monkeypatch.setattr(parts, "SCENES", {"train": 4, "val": 2})


@pytest.mark.parametrize(("place", "checksums"), SCENES.items())
def test_pixels_are_the_same_on_every_platform(
    place: tuple[int, int, int], checksums: tuple[int, int]
) -> None:
    assert tuple(zlib.crc32(array.tobytes()) for array in draw_scene(*place)) == checksums


def test_draws_are_uniform_and_follow_the_seed() -> None:
    numbers = Draws(1, 2).array(10000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    np.testing.assert_array_equal(numbers, Draws(1, 2).array(10000))
    assert not np.array_equal(numbers, Draws(1, 3).array(10000))


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return 60 scenes."""
    return [draw_scene(0, 0, index) for index in range(60)]


def test_scenes_have_every_class_and_thin_ignored_boundaries(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    labels = np.stack([truth for _, truth in scenes])
    assert labels.shape == (60, SIZE, SIZE)
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert np.flatnonzero(shares).tolist() == [*range(len(CLASSES)), IGNORE]
    assert 0.6 < shares[0] < 0.85
    assert shares[1 : len(CLASSES)].min() > 0.01
    assert 0.005 < shares[IGNORE] < 0.05


def _iou_by_colour(scenes: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the IoU of giving each colour the class that it has most often, in the very scenes it is counted in."""
    image, labels = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    valid = labels != IGNORE
    colours = (image[valid].astype(int) // 16) @ np.array([256, 16, 1])
    counts = np.zeros((4096, len(CLASSES)))
    np.add.at(counts, (colours, labels[valid]), 1)
    predicted, truth = counts.argmax(axis=1)[colours], labels[valid]
    both = np.array([((predicted == c) & (truth == c)).sum() for c in range(len(CLASSES))])
    either = np.array([((predicted == c) | (truth == c)).sum() for c in range(len(CLASSES))])
    return both / either


def test_colour_alone_does_not_tell_the_class(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    iou = _iou_by_colour(scenes)
    assert iou.mean() < 0.35
    assert iou[1:].max() < 0.5


def test_data_set_is_made_on_first_use_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "new" / "root"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert [len(load_records(f"parts_{split}")) for split in ("train", "val")] == [4, 2]
    record = load_records("parts_val")[1]
    image, labels = draw_scene(0, 1, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), image)
    np.testing.assert_array_equal(np.asarray(Image.open(record["sem_seg_file_name"])), labels)
    assert [path.name for path in root.iterdir()] == ["parts"], "nothing half-made may stay"
    made = (root / "parts" / "parts.json").stat().st_mtime_ns
    load_records("parts_train")
    assert (root / "parts" / "parts.json").stat().st_mtime_ns == made


def test_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int, split: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return draw_scene(seed, split, index)

    monkeypatch.setattr(parts, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parts.make_parts(tmp_path / "parts")
    assert list(tmp_path.iterdir()) == []


def _make(folder: Path, ready: "multiprocessing.synchronize.Barrier") -> None:
    ready.wait()
    parts.make_parts(folder)


def test_processes_at_once_make_one_data_set(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    processes = [context.Process(target=_make, args=(tmp_path / "parts", ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    assert len(list((tmp_path / "parts").rglob("*.png"))) == 12


def test_folder_of_another_origin_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert "was not made by this version" in refusal(lambda: parts.make_parts(folder))
    (folder / "parts.json").write_text('{"version": 0}')
    assert "move it away" in refusal(lambda: parts.make_parts(folder))
    assert (folder / "mine.txt").read_text() == "mine"


def test_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(lambda: parts.make_parts(tmp_path / "file" / "parts"))
    assert message.startswith(f"the data set parts cannot be made in {tmp_path}/file/parts: ")
    assert "DETECTRON2_DATASETS" in message


def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        parts.make_parts(tmp_path / "parts")
    assert list(tmp_path.iterdir()) == []
