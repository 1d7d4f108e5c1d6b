"""The audit counts what a loop counts, and finds what would make training go wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.audit import PURITIES, Question, audit_dataset, find_shared, judge_absent, look_at
from hicl_d2.data.audit_report import as_json, as_text
from hicl_d2.data.datasets.registry import load_records, register_semantic
from tests.data.conftest import write_pair

WINDOWS = (1, 2, 4)
STRIDE = 4
COVERAGE = 0.5


def loop_survival(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count windows of labels (H, W) one by one, beyond the edges unlabelled."""
    rows, columns = (-(-length // STRIDE) for length in labels.shape)
    padded = np.full((rows * STRIDE, columns * STRIDE), 255)
    padded[: labels.shape[0], : labels.shape[1]] = labels
    candidates = np.zeros((len(WINDOWS), classes), dtype=int)
    kept = np.zeros((len(WINDOWS), len(PURITIES), classes), dtype=int)
    for level, window in enumerate(WINDOWS):
        for top in range(0, rows - window + 1, window):
            for left in range(0, columns - window + 1, window):
                side = window * STRIDE
                part = padded[top * STRIDE :, left * STRIDE :][:side, :side]
                counts = np.bincount(part[part != 255], minlength=classes)
                if counts.sum() < COVERAGE * side**2 or counts.max() * 2 <= counts.sum():
                    continue
                candidates[level, counts.argmax()] += 1
                for index, purity in enumerate(PURITIES):
                    kept[level, index, counts.argmax()] += counts.max() / counts.sum() >= purity
    return candidates, kept


@pytest.mark.parametrize("size", [(24, 32), (19, 30), (4, 4), (3, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_survival_equals_a_loop(tmp_path: Path, size: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    rough = generator.choice([0, 1, 2, 255], (size[0] // 6 + 1, size[1] // 6 + 1), p=[0.4, 0.3, 0.2, 0.1])
    labels = np.kron(rough, np.ones((6, 6), dtype=int))[: size[0], : size[1]].astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "l.png")
    Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
    facts = look_at(Question(3, 255, WINDOWS, STRIDE, COVERAGE), record)
    candidates, kept = loop_survival(labels, 3)
    assert facts.candidates.tolist() == candidates.tolist()
    assert facts.kept.tolist() == kept.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_are_counted_at_the_size_that_training_resizes_to(tmp_path: Path, dtype: type) -> None:
    rough = np.random.default_rng(0).choice([0, 1, 2, 255], (6, 8), p=[0.4, 0.3, 0.2, 0.1])
    large = np.kron(rough, np.ones((12, 12), dtype=int)).astype(dtype)
    Image.fromarray(large).save(tmp_path / "l.png")
    Image.fromarray(np.zeros((72, 96, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
    # Blocks of 12 pixels become blocks of 4; with a long side of 32 at the most the short one is 24 too.
    expected = loop_survival(np.kron(rough, np.ones((4, 4), dtype=int)), 3)
    for resized in ((24, 1000), (500, 32)):
        facts = look_at(Question(3, 255, WINDOWS, STRIDE, COVERAGE, resized), record)
        assert facts.candidates.tolist() == expected[0].tolist()
        assert facts.kept.tolist() == expected[1].tolist()
    assert facts.pixels[255] == int((large == 255).sum())  # shares are those of the files


def test_an_image_of_which_resizing_leaves_nothing_is_a_fault(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 5000), dtype=np.uint8)).save(tmp_path / "l.png")
    Image.fromarray(np.zeros((1, 5000, 3), dtype=np.uint8)).save(tmp_path / "i.png")
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
    (fault,) = look_at(Question(3, 255, WINDOWS, STRIDE, COVERAGE, (320, 640)), record).faults
    assert "i.png: an image of 1 x 5000 cannot be resized" in fault


@pytest.mark.usefixtures("small_root")
def test_counts_are_those_of_the_files() -> None:
    audit = audit_dataset("camvid_train", windows=WINDOWS, workers=2)
    labels = [np.array(Image.open(record["sem_seg_file_name"])) for record in load_records("camvid_train")]
    everything = np.concatenate([part.ravel() for part in labels])
    assert (audit.images, audit.sizes) == (7, {(36, 48): 7})
    assert dict(audit.pixels) == {int(v): int((everything == v).sum()) for v in np.unique(everything)}
    assert audit.images_with[3] == sum((part == 3).any() for part in labels)
    assert not audit.faults
    text = "\n".join(as_text(audit, 0.9))
    assert "camvid_train: 7 images, 11 classes" in text
    report = as_json([audit], [])
    assert report["ok"] is True
    road = report["datasets"][0]["classes"][3]
    assert (road["name"], road["pixels"]) == ("road", int((everything == 3).sum()))


def test_everything_wrong_is_found_in_one_pass(small_root: Path) -> None:
    folder = small_root / "camvid"
    bad = {
        name: folder / "annotations/train" / f"train_{name}.png" for name in ("00", "01", "02", "03", "04")
    }
    Image.fromarray(np.full((36, 48), 77, dtype=np.uint8)).save(bad["00"])
    Image.fromarray(np.zeros((36, 47), dtype=np.uint8)).save(bad["01"])
    Image.fromarray(np.zeros((36, 48, 3), dtype=np.uint8)).save(bad["02"])
    bad["03"].write_bytes(b"nothing")
    Image.fromarray(np.full((36, 48), 255, dtype=np.uint8)).save(bad["04"])
    image = folder / "images/train/train_05.png"
    image.write_bytes(image.read_bytes()[:-60])
    audit = audit_dataset("camvid_train", windows=WINDOWS)
    faults = "\n".join(audit.faults)
    assert len(audit.faults) == 5
    assert f"{bad['00']}: labels outside the 11 classes: 77 (1728 pixels)" in faults
    assert "is 36 x 48, but its label map" in faults
    assert "this one is RGB" in faults
    assert f"{bad['03']}: this label map is in no format" in faults
    assert f"{image}: this image cannot be read" in faults
    assert f"{bad['04']}: no pixel has a class" in audit.warnings
    assert not as_json([audit], [])["ok"]


@pytest.mark.usefixtures("small_root", "nameless")
def test_a_data_set_that_names_no_classes_is_a_fault_and_not_an_error() -> None:
    audit = audit_dataset("nameless")
    (fault,) = audit.faults
    assert "names no classes" in fault
    assert fault in "\n".join(as_text(audit, 0.9))


def test_missing_partners_are_a_fault_and_not_an_error(small_root: Path) -> None:
    (small_root / "camvid/annotations/train/train_01.png").unlink()
    audit = audit_dataset("camvid_train", windows=WINDOWS)
    assert "no label map for 1 of 7 files" in audit.faults[0]


def test_images_in_two_splits_are_found(small_root: Path) -> None:
    folder = small_root / "camvid"
    for number in range(5):
        write_pair(folder, "test", f"test_{number:02d}", 50 + 31 * number)
    names = ("camvid_train", "camvid_test")
    assert not find_shared([audit_dataset(name, windows=WINDOWS) for name in names])
    with Image.open(folder / "images/train/train_02.png") as image:
        image.save(folder / "images/test/test_01.png", compress_level=1)  # other bytes, the same pixels
    (line,) = find_shared([audit_dataset(name, windows=WINDOWS) for name in names])
    expected = "1 image has the same pixels, the first train_02.png and test_01.png"
    assert line == f"camvid_train and camvid_test: {expected}"


def test_palette_images_are_pointed_out(small_root: Path) -> None:
    path = small_root / "camvid/annotations/train/train_00.png"
    with Image.open(path) as image:
        labels = image.copy()
    labels.putpalette(list(range(256)) * 3)
    labels.save(path)
    audit = audit_dataset("camvid_train", windows=WINDOWS)
    assert any(
        "1 label map is a palette image: indices are read, not colours" in line for line in audit.warnings
    )


def _set_labels(root: Path, split: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in sorted((root / "camvid/annotations" / split).glob("*.png")):
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(change(labels).astype(np.uint8)).save(path)


def test_a_class_that_training_lacks_is_a_fault_and_elsewhere_a_warning(small_root: Path) -> None:
    _set_labels(small_root, "train", lambda labels: np.where(labels == 4, 255, labels))
    _set_labels(small_root, "test", lambda labels: np.where(labels == 5, 255, labels))
    audits = [audit_dataset(name, windows=WINDOWS) for name in ("camvid_train", "camvid_test")]
    judge_absent(audits, ("camvid_train",))
    assert audits[0].faults == ["1 class has no pixel in the training data: sidewalk"]
    assert audits[1].faults == []
    assert "1 class has no pixel: tree" in audits[1].warnings


def test_a_class_that_another_training_set_has_is_a_warning(small_root: Path) -> None:
    _set_labels(small_root, "train", lambda labels: np.where(labels == 4, 255, labels))
    audits = [audit_dataset(name, windows=WINDOWS) for name in ("camvid_train", "camvid_val")]
    judge_absent(audits, ("camvid_train", "camvid_val"))
    assert audits[0].faults == audits[1].faults == []
    assert "1 class has no pixel: sidewalk" in audits[0].warnings


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda labels: np.where(labels == 255, 0, labels % 11 + 1), "if classes count from 1 to 11"),
        (lambda labels: labels % 11 + 1, "if classes count from 1 to 11"),
        (lambda labels: (labels > 4) * 255, "if 255 is a class here"),
    ],
)
def test_values_that_are_shifted_or_masks_get_a_hint(
    small_root: Path, change: Callable[[np.ndarray], np.ndarray], hint: str
) -> None:
    _set_labels(small_root, "train", change)
    audit = audit_dataset("camvid_train", windows=WINDOWS)
    judge_absent([audit], ("camvid_train",))
    assert any(hint in line for line in audit.faults)


def test_an_ignored_label_among_the_classes_has_no_share(small_root: Path) -> None:
    _set_labels(small_root, "train", lambda labels: np.where(labels == 255, 0, labels))
    name, classes = "dummy_class", ["dummy", *"abcdefghij"]  # Detectron2's way to ignore label 0
    register_semantic(
        name, lambda: load_records("camvid_train"), classes=classes, colours=[(0, 0, 0)] * 11, ignore_label=0
    )
    try:
        audit = audit_dataset(name, windows=WINDOWS)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    judge_absent([audit], (name,))
    assert not audit.faults
    labels = [np.array(Image.open(record["sem_seg_file_name"])) for record in load_records("camvid_train")]
    everything = np.concatenate([part.ravel() for part in labels])
    found = as_json([audit], [])["datasets"][0]["classes"]
    counted = everything[everything != 0]
    shares = [0.0, *[float((counted == number).sum() / counted.size) for number in range(1, 11)]]
    np.testing.assert_allclose([part["share"] for part in found], shares)
    assert found[0]["images"] == 0


def test_dark_images_of_16_bits_are_pointed_out(small_root: Path) -> None:
    path = small_root / "camvid/images/train/train_00.png"
    Image.fromarray(np.full((36, 48), 4000, dtype=np.uint16)).save(path)
    audit = audit_dataset("camvid_train", windows=WINDOWS)
    assert f"1 image of 16 bits is nearly black in 8 bits, the first is {path}; scale them" in audit.warnings
