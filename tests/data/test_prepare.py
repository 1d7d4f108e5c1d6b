"""Official downloads become the label maps that were meant, and what is wrong with one is said."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hicl_d2.command.downloads import DOWNLOADS, prepare_arguments
from hicl_d2.command.files import PREFIX
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.data.prepare import PLANNERS, carry_out
from hicl_d2.data.prepare.plan import check_complete
from tests.data import official
from tests.data.official import Labels
from tests.test_reading import refusal

DATA_SETS: dict[str, tuple[str, Callable[[Path], Labels], list[str]]] = {
    "cityscapes": ("cityscapes", official.write_cityscapes, ["cityscapes_fine_sem_seg_{train,val}"]),
    "cityscapes from polygons": (
        "cityscapes",
        partial(official.write_cityscapes, ids=False),
        ["cityscapes_fine_sem_seg_{train,val}"],
    ),
    "ade20k": ("ade20k", official.write_ade20k, ["ade20k_sem_seg_{train,val}"]),
    "coco 1.0": (
        "coco_stuff_10k",
        partial(official.write_coco_10k, version="1.0"),
        ["coco_stuff_10k_sem_seg_{train,test}"],
    ),
    "coco 1.1": (
        "coco_stuff_10k",
        partial(official.write_coco_10k, version="1.1"),
        ["coco_stuff_10k_sem_seg_{train,test}"],
    ),
    "coco 1.1 transposed": (
        "coco_stuff_10k",
        partial(official.write_coco_10k, version="1.1", transposed=True),
        ["coco_stuff_10k_sem_seg_{train,test}"],
    ),
    "coco 164k": ("coco_stuff_164k", official.write_coco_164k, ["coco_stuff_164k_sem_seg_{train,val}"]),
}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("case", DATA_SETS)
def test_labels_are_those_that_were_meant(tmp_path: Path, case: str) -> None:
    name, write, _ = DATA_SETS[case]
    intended = write(tmp_path)
    summary = carry_out(PLANNERS[name](tmp_path), tmp_path, workers=2 * (case == "ade20k"))
    for path, labels in intended.items():
        np.testing.assert_array_equal(read(tmp_path / path), labels, err_msg=path)
    assert (summary.converted, summary.kept) == (len(intended), 0)
    everything = np.concatenate([labels.ravel() for labels in intended.values()])
    assert summary.pixels.tolist() == [int((everything == value).sum()) for value in range(256)]


def reads_the_root_now(case: str) -> Any:
    """Mark a case whose names Detectron2 registers itself: it looks up the root once, as it is imported."""
    names_are_theirs = USES_DETECTRON2 and case.startswith(("cityscapes", "ade20k"))
    return pytest.param(
        case, marks=pytest.mark.skipif(names_are_theirs, reason="Detectron2 knows the root already")
    )


@pytest.mark.parametrize("case", map(reads_the_root_now, DATA_SETS))
def test_registered_names_find_what_was_made(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, write, (names,) = DATA_SETS[case]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    intended = write(tmp_path)
    carry_out(PLANNERS[name](tmp_path), tmp_path)
    stem, splits = names.rstrip("}").split("{")
    found = [record for split in splits.split(",") for record in load_records(f"{stem}{split}")]
    assert {record["sem_seg_file_name"] for record in found} == {str(tmp_path / path) for path in intended}
    for record in found:
        with Image.open(record["file_name"]) as image:
            size = image.height, image.width
        assert read(Path(record["sem_seg_file_name"])).shape == size


@pytest.mark.parametrize(
    ("name", "count", "ids"),
    [
        ("cityscapes_fine_sem_seg_val", 19, (7, 33)),
        ("ade20k_sem_seg_val", 150, (1, 150)),
        ("coco_stuff_10k_sem_seg_test", 171, (1, 182)),
        ("coco_stuff_164k_sem_seg_val", 171, (0, 181)),
    ],
)
def test_metadata_know_the_benchmarks_own_labels(name: str, count: int, ids: tuple[int, int]) -> None:
    metadata = MetadataCatalog.get(name)
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == len(metadata.label_ids) == count
    assert metadata.label_ids == sorted(set(metadata.label_ids))
    assert (metadata.label_ids[0], metadata.label_ids[-1]) == ids
    if name.startswith("coco"):
        shift = int("10k" in name)
        assert not set(metadata.label_ids) & {number - 1 + shift for number in official.UNUSED_10K}


def test_a_second_run_keeps_what_is_whole_and_repairs_the_rest(tmp_path: Path) -> None:
    intended = official.write_ade20k(tmp_path)
    plan = PLANNERS["ade20k"](tmp_path)
    first = carry_out(plan, tmp_path)
    paths = [tmp_path / path for path in intended]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    (paths[2].parent / f"{PREFIX}{'0' * 16}-ADE_train_00000003.png.tmp").write_bytes(b"left by a killed run")
    untouched = paths[3].stat().st_mtime_ns
    second = carry_out(plan, tmp_path)
    assert (second.converted, second.kept) == (2, len(paths) - 2)
    assert second.pixels.tolist() == first.pixels.tolist()
    assert paths[3].stat().st_mtime_ns == untouched
    for path, labels in intended.items():
        np.testing.assert_array_equal(read(tmp_path / path), labels)
    assert not list(tmp_path.rglob("*.tmp"))


def test_half_a_download_is_refused_with_its_counts(tmp_path: Path) -> None:
    official.write_ade20k(tmp_path)
    message = refusal(lambda: check_complete(PLANNERS["ade20k"](tmp_path)))
    assert "train has 4 of 20210, val has 4 of 2000 label files" in message
    assert "--partial" in message


def test_both_versions_of_coco_stuff_in_one_folder_are_refused(tmp_path: Path) -> None:
    official.write_coco_10k(tmp_path, "1.0", count=2)
    one = sorted((tmp_path / "coco/coco_stuff_10k/annotations").glob("*.mat"))[0]
    kept = one.read_bytes()
    official.write_coco_10k(tmp_path, "1.1", count=2)
    one.write_bytes(kept)
    message = refusal(lambda: PLANNERS["coco_stuff_10k"](tmp_path))
    assert "v1.0" in message
    assert "v1.1" in message
    assert one.name in message


def test_labels_that_fit_both_versions_are_refused(tmp_path: Path) -> None:
    official.write_coco_10k(tmp_path, "1.0", count=1)
    for path in (tmp_path / "coco/coco_stuff_10k/annotations").glob("*.mat"):
        savemat(path, {"S": np.full((20, 36), 5, dtype=np.uint8)})
    assert "version cannot be told" in refusal(lambda: PLANNERS["coco_stuff_10k"](tmp_path))


def test_a_file_of_the_other_version_is_found_when_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official.write_coco_10k(tmp_path, "1.0", count=4)
    monkeypatch.setattr("hicl_d2.data.prepare.coco_stuff.SAMPLES", 2)
    last = sorted((tmp_path / "coco/coco_stuff_10k/annotations").glob("*.mat"))[-1]
    savemat(last, {"S": np.full((20, 36), 182, dtype=np.uint8)})
    plan = PLANNERS["coco_stuff_10k"](tmp_path)
    assert plan.notes == ["labels of COCO-Stuff 10k v1.0"]
    message = refusal(lambda: carry_out(plan, tmp_path))
    assert f"{last}: label 182 (720 pixels) does not occur in COCO-Stuff v1.0" in message


BAD_MATS: dict[str, tuple[bytes | dict[str, object], str]] = {
    "corrupt": (b"MATLAB 5.0 MAT-file" + b"\0" * 300, "is no MATLAB file"),
    "empty": (b"", "is no MATLAB file"),
    "no S": ({"T": np.zeros((3, 3))}, "has no label map S"),
    "empty S": ({"S": np.zeros((0, 0), dtype=np.uint8)}, "has no label map S"),
    "fractions": ({"S": np.full((20, 36), 2.5)}, "numbers that are no labels"),
    "size": ({"S": np.zeros((9, 9), dtype=np.uint8)}, "the label map is 9 x 9, but its image"),
}


@pytest.mark.parametrize("case", BAD_MATS)
def test_bad_mat_is_named_and_the_others_are_converted(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    intended = official.write_coco_10k(tmp_path, "1.1", count=3)
    monkeypatch.setattr("hicl_d2.data.prepare.coco_stuff.SAMPLES", 2)
    content, expected = BAD_MATS[case]
    bad = sorted((tmp_path / "coco/coco_stuff_10k/annotations").glob("*.mat"))[2]
    bad.write_bytes(content) if isinstance(content, bytes) else savemat(bad, content)
    plan = PLANNERS["coco_stuff_10k"](tmp_path)
    message = refusal(lambda: carry_out(plan, tmp_path, workers=2))
    assert message.startswith("1 of 6 files cannot be converted; the first: ")
    assert str(bad) in message
    assert expected in message
    made = [path for path in intended if (tmp_path / path).is_file()]
    assert len(made) == len(intended) - 1


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff_164k", "cityscapes"])
def test_label_outside_the_benchmark_names_file_value_and_pixels(tmp_path: Path, name: str) -> None:
    write = {
        "ade20k": official.write_ade20k,
        "coco_stuff_164k": official.write_coco_164k,
        "cityscapes": official.write_cityscapes,
    }
    write[name](tmp_path)
    source = PLANNERS[name](tmp_path).items[0].source
    labels = read(source)
    labels[:2, :3] = {"ade20k": 151, "coco_stuff_164k": 11, "cityscapes": 34}[name]
    Image.fromarray(labels).save(source)
    message = refusal(lambda: carry_out(PLANNERS[name](tmp_path), tmp_path))
    assert f"{source}: label {labels[0, 0]} (6 pixels) does not occur" in message


def test_16_bit_labels_are_not_cut_to_8(tmp_path: Path) -> None:
    official.write_ade20k(tmp_path)
    source = PLANNERS["ade20k"](tmp_path).items[0].source
    labels = read(source).astype(np.uint16)
    labels[0, 0] = 256 + 7
    Image.fromarray(labels).save(source)
    assert "label 263 (1 pixel)" in refusal(lambda: carry_out(PLANNERS["ade20k"](tmp_path), tmp_path))


def test_a_link_out_of_the_root_is_not_written_through(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    official.write_ade20k(root)
    elsewhere.mkdir()
    (root / "ADEChallengeData2016" / "annotations_detectron2").symlink_to(elsewhere)
    message = refusal(lambda: carry_out(PLANNERS["ade20k"](root), root))
    assert str(elsewhere) in message
    assert "symbolic link" in message
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", PLANNERS)
def test_missing_download_shows_the_expected_files(tmp_path: Path, name: str) -> None:
    assert "expected " in refusal(lambda: PLANNERS[name](tmp_path))


@pytest.mark.parametrize("name", PLANNERS)
def test_a_wrong_root_is_answered_with_the_folder_before_torch_is_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    code = (
        "import sys\nfrom hicl_d2.tools.hicl import main\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(f'torch {\"torch\" in sys.modules}')"
    )
    for root, wanted in (("empty", DOWNLOADS[name].folders[0]), ("gone", "is no folder")):
        command = [sys.executable, "-c", code, "prepare", name, "--root", str(tmp_path / root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        line, heavy = done.stderr.splitlines()
        assert (done.returncode, heavy) == (2, "torch False")
        assert line.startswith(f"hicl prepare: {tmp_path / root}")
        assert wanted in line


def test_a_root_that_is_the_data_sets_own_folder_is_answered_with_the_one_above(tmp_path: Path) -> None:
    official.write_cityscapes(tmp_path)
    message = refusal(
        lambda: prepare_arguments(["cityscapes", "--root", str(tmp_path / "cityscapes")], "prepare")
    )
    assert message.endswith(f"; it is in {tmp_path}: --root {tmp_path}")


def test_the_folders_that_are_looked_for_are_those_that_are_read(tmp_path: Path) -> None:
    for name, write, _ in DATA_SETS.values():
        root = tmp_path / name
        write(root)
        assert prepare_arguments([name, "--root", str(root)], "prepare").root == root
        for folder in DOWNLOADS[name].folders:
            (root / folder).rename(root / "moved")
            assert str(root / folder) in refusal(
                lambda name=name, root=root: prepare_arguments([name, "--root", str(root)], "prepare")  # type: ignore[misc]
            )
            (root / "moved").rename(root / folder)


def _prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hicl_d2.data.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


def test_command_line_ends_with_count_and_histogram(tmp_path: Path) -> None:
    root = tmp_path / "ünï code"
    official.write_cityscapes(root)
    refused = _prepare("cityscapes", "--root", str(root))
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "prepare: the download is not complete: train has 3 of 2975, val has 3 of 500"
    )
    assert refused.stderr.count("\n") == 1
    done = _prepare("cityscapes", "--root", str(root), "--partial", "--workers", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "6 label maps: 6 made, 0 kept"
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[1:21]]
    assert sum(shares) == pytest.approx(100, abs=0.01)
    assert shares[:19] == sorted(shares[:19], reverse=True)
    assert "preparing cityscapes 6/6" in done.stderr
