"""predict.py, inspect_components.py and check_dataset.py on a tiny model, in this process."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.contrast.grid import align_labels
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.d2.modeling import build_model
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.evaluation import predicted_classes
from hicl_d2.tools import check, inspect, predict
from hicl_d2.visualization.components import ClassLevelPicture
from tests.support import tiny

HICL = "  META_ARCHITECTURE: HiCL\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write data, a config with the branch, and the weights of a fresh model."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    tiny.make_data(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(tiny.CONFIG.replace("  META_ARCHITECTURE: TinySegmentor\n", HICL))
    model = build_model(load_config(config)).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    return {"config_file": str(config), "weights": str(tmp_path / "weights.pth"), "opts": [], "model": model}


def arguments(run: dict[str, Any], output: Path, **more: Any) -> Namespace:
    return Namespace(
        **{**run, "output": str(output), "strength": 0.5, "count": 2, "image": [], "dataset": "", **more}
    )


def test_predictions_are_those_of_the_model_and_a_broken_file_is_passed_over(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "input" / "ünï code"
    folder.mkdir(parents=True)
    records = load_records("tiny_val")
    for record in records:
        Image.open(record["file_name"]).save(folder / Path(record["file_name"]).name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    assert predict.main(arguments(run, output, input=[str(tmp_path / "input")])) is False
    shown = capsys.readouterr().out
    assert "3 of 4 images" in shown
    assert f"failed: {folder}/broken.jpg" in shown
    for record in records:
        name = f"ünï code/{Path(record['file_name']).stem}"
        with Image.open(record["file_name"]) as image:
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        with torch.no_grad():
            scores = run["model"]([{"image": tensor, "height": 20, "width": 24}])[0]["sem_seg"]
        with Image.open(output / "labels" / f"{name}.png") as labels:
            np.testing.assert_array_equal(np.array(labels), predicted_classes(scores).numpy())
        with Image.open(output / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == (24, 20)
    assert (output / "legend.png").is_file()
    assert not list(output.rglob("*.tmp"))


def test_inputs_are_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "sub/a.png", "c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [name for name, _ in predict.find_images([str(tmp_path)])] == ["a.png", "b.jpg", "sub/a.png"]
    assert [name for name, _ in predict.find_images([str(tmp_path / "*.png")])] == ["a.png"]
    assert [name for name, _ in predict.find_images([str(tmp_path / "b.jpg"), str(tmp_path / "a.png")])] == [
        "a.png",
        "b.jpg",
    ]
    with pytest.raises(InputError, match="no image is there"):
        predict.find_images([str(tmp_path / "*.bmp")])
    with pytest.raises(InputError, match="under one name"):
        predict.find_images([str(tmp_path / "a.png"), str(tmp_path / "sub" / "a.png")])


def test_weights_that_are_missing_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_such_file"):
        predict.main(arguments({**run, "weights": "no_such_file"}, tmp_path / "out", input=[str(tmp_path)]))


@pytest.mark.parametrize("kind", ["file_name", "sem_seg_file_name"])
def test_pictures_are_not_written_among_the_images(run: dict[str, Any], kind: str) -> None:
    file = Path(load_records("tiny_val")[0][kind])
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with pytest.raises(InputError, match=r"a picture could overwrite; give a folder of its own"):
        inspect.main(arguments(run, file.parent))
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


AUDIT: dict[str, Any] = {"windows": None, "stride": 4, "workers": 0, "pictures": 2, "dataset": []}


@pytest.mark.parametrize(
    ("tool", "more", "name"),
    [
        (inspect, {}, "0.png"),
        (check, AUDIT, "tiny_val.png"),
        (predict, {"input": []}, "labels/1.png"),
        (predict, {"input": []}, "overlays/1.jpg"),
        (predict, {"input": []}, "legend.png"),
    ],
)
def test_a_picture_of_the_users_is_never_written_over_and_one_of_a_tools_is(
    run: dict[str, Any], tmp_path: Path, tool: Any, more: dict[str, Any], name: str
) -> None:
    images = Path(load_records("tiny_val")[0]["file_name"]).parent
    if "input" in more:
        more = {"input": [str(images)]}
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(theirs)
    before = theirs.read_bytes()
    with pytest.raises(InputError, match=f"{name} is there, is no picture of this project"):
        tool.main(arguments(run, tmp_path / "out", **more))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_bytes() == before
    theirs.unlink()
    for _ in range(2):
        tool.main(arguments(run, tmp_path / "out", **more))
    assert theirs.is_file()


def test_components_are_drawn_with_the_branchs_own_counts(run: dict[str, Any], tmp_path: Path) -> None:
    inspect.main(arguments(run, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    cfg, model = predict.load_model(run["config_file"], run["weights"], [], str(tmp_path))
    mapped = inspect.SemanticMapper(cfg, False)(load_records("tiny_val")[0])
    image, truth, prediction, levels, embedding = inspect.inspect(cfg, model, mapped)
    assert truth.shape == prediction.shape == (image.height, image.width) == (20, 24)
    assert [level.window for level in levels] == [1, 2]
    for level in levels:
        # Stride 2, blocks of 4 x 4 pixels of one class: windows of one and two cells are all pure.
        assert level.side == 2 * level.window
        assert (level.fates == 0).all()
        middle = level.side // 2
        np.testing.assert_array_equal(level.classes, truth[middle :: level.side, middle :: level.side])
    assert embedding.dense.shape == (10, 12, 3)
    assert 0 < embedding.explained <= 1 + 1e-6


def test_pruned_windows_have_their_reason(run: dict[str, Any], tmp_path: Path) -> None:
    opts = ["MODEL.HICL.WINDOWS", "[1, 4]", "MODEL.HICL.CONFIDENCE_LOW", "[0.999]"]
    cfg, model = predict.load_model(
        run["config_file"], "", ["MODEL.WEIGHTS", run["weights"], *opts], str(tmp_path)
    )
    mapped = inspect.SemanticMapper(cfg, False)(load_records("tiny_val")[0])
    mapped["sem_seg"][:8, :8] = 255
    levels = inspect.inspect(cfg, model, mapped)[3]
    assert levels[1].fates[0, 0] == 1  # nothing labelled
    assert (levels[0].fates[:4, :4] == 1).all()
    assert (levels[0].fates[4:] == 3).all()  # a fresh model is not that sure
    assert (levels[1].fates == 2).any()  # windows of 8 pixels hold several blocks of 4


def test_class_pooling_is_drawn_cell_by_cell(run: dict[str, Any], tmp_path: Path) -> None:
    opts = [
        *("MODEL.HICL.POOLING", "class"),
        *("MODEL.HICL.CELL_CLASS", "majority"),
        *("MODEL.HICL.WINDOWS", "[1, 4]"),
    ]
    inspect.main(arguments({**run, "opts": opts}, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    cfg, model = predict.load_model(
        run["config_file"], "", ["MODEL.WEIGHTS", run["weights"], *opts], str(tmp_path)
    )
    mapped = inspect.SemanticMapper(cfg, False)(load_records("tiny_val")[0])
    # Windows of 4 cells are 8 pixels here. In the first three cells are of class 0, and the cell beside them is half of it.
    labels = mapped["sem_seg"]
    labels[:8, :8] = 255
    labels[:2, :6] = 0
    labels[:2, 6:8] = torch.tensor([0, 1])
    _, _, _, levels, embedding = inspect.inspect(cfg, model, mapped)
    assert isinstance(levels[1], ClassLevelPicture)
    assert levels[1].fates[:4, :4].tolist() == [[4, 4, 4, 2], [1] * 4, [1] * 4, [1] * 4]
    assert levels[0].fates[0, :4].tolist() == [0, 0, 0, 2]
    branch = model.hicl
    with torch.no_grad():
        grid = align_labels(labels[None].long(), levels[1].fates.shape, branch.num_classes, 255)
        drawn = branch.draw(grid, None, torch.Generator())
    for level, pruned in zip(levels, drawn.pruned, strict=True):
        figures = pruned.counts()
        assert level.counts() == {0: figures["kept"], 4: figures["pruned_purity"]}
    assert set(embedding.component_levels.tolist()) == {0, 1}


def test_cells_are_drawn_in_the_class_that_training_gives_them(run: dict[str, Any], tmp_path: Path) -> None:
    opts = ["MODEL.HICL.CELL_CLASS", "middle", "MODEL.HICL.WINDOWS", "[1, 4]"]
    cfg, model = predict.load_model(
        run["config_file"], "", ["MODEL.WEIGHTS", run["weights"], *opts], str(tmp_path)
    )
    mapped = inspect.SemanticMapper(cfg, False)(load_records("tiny_val")[0])
    labels = mapped["sem_seg"]
    labels[:4, :4] = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 255], [255] * 4, [255] * 4])
    levels = inspect.inspect(cfg, model, mapped)[3]
    # Of the pixels at (1, 1), (1, 3), (3, 1) and (3, 3).
    assert levels[0].classes[:2, :2].tolist() == [[1, -1], [-1, -1]]
    assert levels[0].fates[:2, :2].tolist() == [[0, 1], [1, 1]]
    assert (levels[0].fates != 2).all()  # no cell is impure
    assert (levels[1].fates == 2).any()  # windows of 8 pixels are counted pixel by pixel


def test_a_model_without_the_branch_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no Hi-CL branch"):
        inspect.main(arguments({**run, "opts": ["MODEL.HICL.ENABLED", "False"]}, tmp_path))


def test_check_says_whether_training_would_go_right(run: dict[str, Any], tmp_path: Path) -> None:
    more = {"windows": None, "stride": 4, "workers": 0, "pictures": 2, "dataset": []}
    assert check.main(arguments(run, tmp_path / "audit", **more)) is True
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [part["name"] for part in report["datasets"]] == ["tiny_train", "tiny_val"]
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.json",
        "tiny_train.png",
        "tiny_val.png",
    ]
    opts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    assert check.main(arguments({**run, "opts": opts}, tmp_path / "audit", **more)) is False
    assert "NUM_CLASSES is 4" in (tmp_path / "audit" / "audit.json").read_text()


def test_check_names_classes_that_no_window_is_pure_enough_for(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"windows": None, "stride": 4, "workers": 0, "pictures": 0, "dataset": []}
    for path in (tmp_path / "tiny/annotations/train").iterdir():
        labels = np.zeros((20, 24), dtype=np.uint8)
        labels[::4, ::4] = 1  # a sixteenth of each cell
        labels[:, 12:] = 2
        Image.fromarray(labels).save(path)
    size = ["INPUT.MIN_SIZE_TRAIN", "(20,)"]
    majority = [*size, "MODEL.HICL.CELL_CLASS", "majority"]
    assert check.main(arguments({**run, "opts": majority}, tmp_path / "audit", **more)) is True
    shown = capsys.readouterr().out
    assert "(short side 20, stride 4, " in shown
    name = MetadataCatalog.get("tiny_train").stuff_classes[1]
    line = f"1 class has no window of 1 x 1 cells with a purity of 0.9, and so no part in the contrast: {name}; lower"
    assert shown.count(line) == 1
    assert "lower MODEL.HICL.PURITY or set MODEL.HICL.CELL_CLASS to middle" in shown
    # By default cells have the class of their middle pixel, and nothing is asked of them.
    for opts in ([*majority, "MODEL.HICL.ENABLED", "False"], size):
        check.main(arguments({**run, "opts": opts}, tmp_path / "audit", **more))
        assert "no part in the contrast" not in capsys.readouterr().out
    larger = [*size, "MODEL.HICL.WINDOWS", "[2, 4]"]
    check.main(arguments({**run, "opts": larger}, tmp_path / "audit", **more))
    assert "no window of 2 x 2 cells" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", "LABEL_VALUES: {0: dark, 255: bright}"])
def test_check_faults_masks_whose_foreground_is_ignored(
    run: dict[str, Any], tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks of 0 and 255 with two classes: nothing is out of range, and yet there is nothing to learn."""
    for split in ("train", "val"):
        for path in (tmp_path / "tiny/annotations" / split).iterdir():
            with Image.open(path) as image:
                labels = np.array(image)
            Image.fromarray(((labels > 1) * 255).astype(np.uint8)).save(path)
    block = "CUSTOM: {mine: {IMAGES: tiny/images/train, LABELS: tiny/annotations/train, CLASSES: [dark, bright], GIVEN}}"
    config = Path(run["config_file"])
    text = config.read_text().replace("NUM_CLASSES: 3", "NUM_CLASSES: 2")
    config.write_text(
        text.replace(
            "DATASETS: {TRAIN: [tiny_train], TEST: [tiny_val]}", f"DATASETS: {{TRAIN: [mine], {block}}}"
        ).replace(", GIVEN", f", {given}" if given else "")
    )
    more = {"windows": None, "stride": 4, "workers": 0, "pictures": 2, "dataset": []}
    assert check.main(arguments(run, tmp_path / "audit", **more)) is bool(given)
    fault = (
        "fault: 1 class has no pixel in the training data: bright; if 255 is a class here, say so in DATASETS.CUSTOM: "
        "LABEL_VALUES: {0: name, 255: name}"
    )
    assert (fault in capsys.readouterr().out) is not bool(given)


@pytest.mark.parametrize("name", ["balloon/train", "../../balloon", "v1.0", "a|b", "x" * 120])
def test_check_draws_data_sets_of_any_name(run: dict[str, Any], tmp_path: Path, name: str) -> None:
    config = Path(run["config_file"])
    block = f"CUSTOM: {{'{name}': {{IMAGES: tiny/images/train, LABELS: tiny/annotations/train, CLASSES: [a, b, c]}}}}"
    known = "DATASETS: {TRAIN: [tiny_train], TEST: [tiny_val]}"
    config.write_text(config.read_text().replace(known, f"DATASETS: {{TRAIN: ['{name}'], {block}}}"))
    output = tmp_path / "deep/er/out"
    more = {"windows": None, "stride": 4, "workers": 0, "pictures": 2, "dataset": []}
    before = set(tmp_path.rglob("*"))
    check.main(arguments(run, output, **more))
    assert len(list(output.iterdir())) == 2
    assert {p.parent for p in set(tmp_path.rglob("*")) - before if p.is_file()} == {output}
