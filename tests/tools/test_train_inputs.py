"""What odd images and masks do to a training: said at its start, and never the reason to lose its result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.evaluation.inference import Named
from hicl_d2.tools import train
from tests.support import tiny
from tests.support.fixtures import Command


def replace(root: Path, image: np.ndarray, labels: np.ndarray, tag: int = 1, name: str = "1") -> Path:
    """Put an image with an EXIF tag, and its label map, in the place of a test image that is drawn."""
    exif = Image.Exif()
    exif[0x0112] = tag
    path = root / f"tiny/images/val/{name}.png"
    Image.fromarray(image).save(path, exif=exif)
    Image.fromarray(labels).save(root / f"tiny/annotations/val/{name}.png")
    return path


@pytest.mark.parametrize("tag", [3, 6, 8])
@pytest.mark.parametrize("label_is_turned", [True, False])
def test_turned_test_images_are_scored_and_drawn(
    command: Command, own_data_root: Path, tmp_path: Path, tag: int, label_is_turned: bool
) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    labels = np.zeros((20, 24), dtype=np.uint8)
    if label_is_turned:
        labels = np.zeros((24, 20) if tag > 4 else (20, 24), dtype=np.uint8)
    replace(own_data_root, stored, labels, tag)
    assert command("SOLVER.MAX_ITER", "1", "TEST.PICTURES", "3").code == 0
    assert sorted(path.name for path in (tmp_path / "run/pictures").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "scores.json",
    ]


def test_a_picture_that_cannot_be_drawn_is_a_warning(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hicl_d2.visualization import pictures

    draw, failing = pictures.side_by_side, "1"

    def broken(*args: Any, title: str, **options: Any) -> Any:
        assert (tmp_path / "run/result.json").is_file()
        if title == failing:
            raise ValueError("no ink\nleft")
        return draw(*args, title=title, **options)

    monkeypatch.setattr(pictures, "side_by_side", broken)
    outcome = command("SOLVER.MAX_ITER", "1", "TEST.PICTURES", "3")
    assert outcome.code == 0
    assert "images/val/1.png was not drawn: ValueError: no ink left" in outcome.err
    assert "was not drawn" in (tmp_path / "run/log.txt").read_text()
    assert sorted(json.loads((tmp_path / "run/pictures/scores.json").read_text())) == ["0", "2"]


def test_no_pictures_at_all_are_a_warning_too(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("nowhere to draw")

    monkeypatch.setattr(train, "draw_pictures", broken)
    outcome = command("SOLVER.MAX_ITER", "1", "TEST.PICTURES", "3")
    assert outcome.code == 0
    assert "no pictures of tiny_val were drawn: RuntimeError: nowhere to draw" in outcome.err
    assert (tmp_path / "run/result.json").is_file()


def test_a_class_without_a_pixel_is_a_warning_at_the_start(
    command: Command, own_data_root: Path, tmp_path: Path
) -> None:
    for path in (own_data_root / "tiny/annotations/train").iterdir():
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(np.where(labels == 1, 255, labels).astype(np.uint8)).save(path)
    outcome = command("SOLVER.MAX_ITER", "1", "TEST.PICTURES", "0")
    warning = "class 'middle' has no pixel in the training data; check_dataset.py counts all"
    assert outcome.code == 0
    assert outcome.err.count(warning) == 1
    log = (tmp_path / "run/log.txt").read_text()
    assert log.index(warning) < log.index("iteration") if "iteration" in log else warning in log


@pytest.mark.usefixtures("data_root")
def test_every_class_with_a_pixel_needs_no_warning(command: Command) -> None:
    assert "no pixel" not in command("SOLVER.MAX_ITER", "1", "TEST.PICTURES", "0").err


@pytest.mark.parametrize("size", [(1, 3000), (20, 25)])
def test_a_test_image_that_cannot_be_used_is_named_before_training(
    command: Command, own_data_root: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    labels = np.zeros(size if size[0] == 1 else (20, 24), dtype=np.uint8)
    path = replace(own_data_root, np.zeros((*size, 3), dtype=np.uint8), labels, name="2")
    line = command("INPUT.MIN_SIZE_TEST", "8", "INPUT.MAX_SIZE_TEST", "40").line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


def test_a_test_image_that_the_model_cannot_take_is_named(
    command: Command, own_data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny.TinySegmentor.forward

    def picky(self: Any, inputs: list[dict[str, Any]]) -> Any:
        if inputs[0]["image"].shape[2] == 25:
            from hicl_d2.command.errors import InputError

            raise InputError("25 columns do not fit")
        return forward(self, inputs)

    monkeypatch.setattr(tiny.TinySegmentor, "forward", picky)
    path = replace(
        own_data_root, np.full((20, 25, 3), 7, dtype=np.uint8), np.zeros((20, 25), dtype=np.uint8), name="2"
    )
    line = command("SOLVER.MAX_ITER", "1").err.splitlines()[-1]
    assert f"{path} (20 x 25 as the model sees it): 25 columns do not fit" in line


def test_a_fault_of_the_model_keeps_its_type_and_has_the_image_as_a_note() -> None:
    class Broken(torch.nn.Module):
        def forward(self, inputs: Any) -> Any:
            raise ZeroDivisionError("by zero")

    record = {"file_name": "a.png", "image": torch.zeros(3, 4, 5)}
    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        Named(Broken())([record])
    assert caught.value.__notes__ == ["while predicting a.png (4 x 5 as the model sees it)"]


def test_a_training_image_that_is_resized_to_nothing_is_named(command: Command, own_data_root: Path) -> None:
    for number in range(6):
        path = own_data_root / f"tiny/images/train/{number}.png"
        Image.fromarray(np.zeros((1, 3000, 3), dtype=np.uint8)).save(path)
        Image.fromarray(np.zeros((1, 3000), dtype=np.uint8)).save(
            own_data_root / f"tiny/annotations/train/{number}.png"
        )
    line = command("INPUT.MAX_SIZE_TRAIN", "100", "SOLVER.MAX_ITER", "1").err.splitlines()[-1]
    assert "tiny/images/train/" in line
    assert "an image of 1 x 3000 cannot be resized or cropped as INPUT says (0 x 100 would be left)" in line
