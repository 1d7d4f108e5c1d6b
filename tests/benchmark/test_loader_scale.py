"""Loading at the scale of a large data set, at a tiny one: what is made, printed and written."""

import csv
from pathlib import Path
from typing import Any

import loader_scale
import loader_speed
import pytest
from PIL import Image


@pytest.fixture
def frames(tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "frames").mkdir()
    return loader_speed.make_records(tmp_path / "frames", 2)


def test_every_image_has_a_name_of_its_own_and_is_one_of_the_frames(
    tmp_path: Path, frames: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader_scale.make_dataset(tmp_path, frames, 5)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = loader_scale.load_records(loader_scale.NAME)
    assert len(records) == 5
    inodes = [Path(record["file_name"]).stat().st_ino for record in records]
    assert inodes == [inodes[0], inodes[1]] * 2 + [inodes[0]]
    assert inodes[0] != inodes[1]
    with Image.open(records[3]["file_name"]) as image, Image.open(records[3]["sem_seg_file_name"]) as labels:
        assert image.size == labels.size == loader_scale.SIZE
        assert image.format == "JPEG"


def test_every_number_of_workers_has_a_row(
    tmp_path: Path,
    frames: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_script: Any,
) -> None:
    known = loader_scale.load_records
    monkeypatch.setattr(
        loader_scale, "load_records", lambda name: frames if name == loader_scale.SOURCE else known(name)
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", "set anew by the script")
    output = tmp_path / "rows.csv"
    words = ["--images", "12", "--batches", "10", "--workers", "0", "1", "--output", str(output)]
    small = ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(40,)", "INPUT.CROP.SIZE", "(32,32)"]
    run_script(loader_scale, [*words, *small])
    printed = capsys.readouterr().out
    assert "12 images of 683 x 512" in printed
    assert "target: listing: under 1 s; measured" in printed
    with open(output) as file:
        rows = list(csv.DictReader(file))
    assert [row["workers"] for row in rows] == ["0", "1"]
    for row in rows:
        assert row["batches"] == "10"
        assert float(row["images / s"]) > 0
        assert float(row["MB at the end"]) > 10
