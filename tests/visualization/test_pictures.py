"""Pictures drawn from a registered data set and a model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import get_cfg
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.visualization import draw_pictures
from hicl_d2.visualization.pictures import evenly_spaced


class Constant(nn.Module):
    """Predict one class everywhere, at the size of the original image."""

    def __init__(self, label):
        super().__init__()
        self.label = label
        self.seen = []

    def forward(self, inputs):
        assert not self.training
        assert not torch.is_grad_enabled()
        assert all(record["image"].dtype == torch.uint8 for record in inputs)
        self.seen.extend(record["file_name"] for record in inputs)
        scores = torch.zeros(2, inputs[0]["height"], inputs[0]["width"])
        scores[self.label] = 1
        return [{"sem_seg": scores}]


@pytest.fixture
def dataset(tmp_path):
    records = []
    for index in range(7):
        folder = tmp_path / f"town{index % 2}"
        folder.mkdir(exist_ok=True)
        record = {
            "file_name": str(folder / f"{index:02}.jpg"),
            "sem_seg_file_name": str(folder / f"{index:02}.png"),
        }
        Image.new("RGB", (400, 300), (index, 0, 0)).save(record["file_name"])
        Image.fromarray(np.zeros((300, 400), dtype=np.uint8)).save(record["sem_seg_file_name"])
        records.append({**record, "height": 300, "width": 400})
    name = f"pictures_test_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b"],
        stuff_colors=[[250, 0, 0], [0, 250, 0]],
        ignore_label=255,
        evaluator_type="sem_seg",
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_evenly_spaced_images_are_drawn_by_name_with_the_data_sets_colours(dataset, tmp_path):
    model = Constant(1).train()
    paths = draw_pictures(SemanticMapper(get_cfg(), is_train=False), model, dataset, tmp_path / "run", 3)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "run/pictures/01.png",
        "run/pictures/03.png",
        "run/pictures/05.png",
    ]
    assert model.training
    assert sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir()) == [
        "01.png",
        "03.png",
        "05.png",
        "scores.json",
    ]
    # the truth is class 0 everywhere, and class 1 is predicted everywhere
    assert json.loads((tmp_path / "run" / "pictures" / "scores.json").read_text()) == dict.fromkeys(
        ["01", "03", "05"], 0.0
    )
    with Image.open(paths[0]) as sheet:
        sheet.load()
        assert sheet.getpixel((sheet.width // 2, 100)) == (250, 0, 0)
        assert sheet.getpixel((sheet.width - 100, 100)) == (0, 250, 0)


def test_a_file_of_the_users_is_not_drawn_over(dataset, tmp_path):
    (tmp_path / "pictures").mkdir()
    theirs = tmp_path / "pictures" / "03.png"
    theirs.write_bytes(b"theirs")
    with pytest.raises(InputError, match=r"03\.png is there, .*; give another OUTPUT_DIR"):
        draw_pictures(SemanticMapper(get_cfg(), is_train=False), Constant(1), dataset, tmp_path, 3)
    assert [path.read_bytes() for path in theirs.parent.iterdir()] == [b"theirs"]


def test_more_pictures_than_images_draws_all_and_none_draws_none(dataset, tmp_path):
    assert (
        len(draw_pictures(SemanticMapper(get_cfg(), is_train=False), Constant(0), dataset, tmp_path, 100))
        == 7
    )
    assert (
        draw_pictures(SemanticMapper(get_cfg(), is_train=False), Constant(0), dataset, tmp_path / "none", 0)
        == []
    )
    assert not (tmp_path / "none").exists()


def test_images_of_the_same_name_in_two_folders_get_two_pictures(tmp_path):
    records = []
    for town in ("x", "y"):
        (tmp_path / town).mkdir()
        files = {
            "file_name": str(tmp_path / town / "1.png"),
            "sem_seg_file_name": str(tmp_path / town / "1_label.png"),
        }
        Image.new("RGB", (40, 30)).save(files["file_name"])
        Image.new("L", (40, 30)).save(files["sem_seg_file_name"])
        records.append({**files, "height": 30, "width": 40})
    name = f"pictures_test_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"])
    paths = draw_pictures(SemanticMapper(get_cfg(), is_train=False), Constant(0), name, tmp_path, 2)
    assert [path.name for path in paths] == ["000_1.png", "001_1.png"]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(233, 4, [29, 87, 145, 203]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (5, 1, [2]), (5, 0, []), (0, 3, [])],
)
def test_evenly_spaced(total, count, expected):
    assert evenly_spaced(list(range(total)), count) == expected
