"""Predictions in the benchmarks' labels, and the official scorer of Cityscapes against ours."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.evaluation import inference_on_dataset
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.data.prepare import PLANNERS, carry_out
from hicl_d2.evaluation import build_evaluator
from tests.data import official


def guess(inputs, classes):
    """Predict the truth with every fifth pixel wrong, from the label file of the record."""
    outputs = []
    for record in inputs:
        if "sem_seg_file_name" in record:
            with Image.open(record["sem_seg_file_name"]) as image:
                labels = np.array(image).astype(np.int64)
        else:
            labels = np.zeros((24, 32), dtype=np.int64)
        labels[labels == 255] = 3
        labels.ravel()[::5] = (labels.ravel()[::5] + 1) % classes
        scores = torch.nn.functional.one_hot(torch.from_numpy(labels), classes)
        outputs.append({"sem_seg": scores.permute(2, 0, 1).float()})
    return outputs


def evaluate(name, classes, folder, **keys):
    cfg = get_hicl_cfg()
    for key, value in keys.items():
        cfg.TEST[key] = value
    records = [[record] for record in load_records(name)]
    model = partial(guess, classes=classes)
    return inference_on_dataset(model, records, build_evaluator(cfg, name, folder))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


CASES = {
    "ade20k": (official.write_ade20k, "ade20k_sem_seg_val", 150, lambda raw: raw),
    "coco_stuff_10k": (
        partial(official.write_coco_10k, version="1.1"),
        "coco_stuff_10k_sem_seg_test",
        171,
        None,
    ),
    "coco_stuff_164k": (official.write_coco_164k, "coco_stuff_164k_sem_seg_val", 171, lambda raw: raw),
}


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's loaders keep the root that they were imported with")
@pytest.mark.parametrize("case", CASES)
def test_a_submission_holds_the_benchmarks_own_labels(root, tmp_path, case):
    """A right pixel of the submission equals the raw label of the download."""
    write, name, classes, raw_of = CASES[case]
    write(root)
    carry_out(PLANNERS[case](root), root)
    evaluate(name, classes, tmp_path / "out", SUBMISSION=True)
    for record in load_records(name):
        path = tmp_path / "out" / "submission" / f"{Path(record['file_name']).stem}.png"
        with Image.open(path) as image:
            assert image.mode == "L"
            predicted = np.array(image)
        with Image.open(record["sem_seg_file_name"]) as image:
            truth = np.array(image)
        sources = {"ade20k": "annotations", "coco_stuff_164k": "stuffthingmaps"}
        if raw_of is None:
            from scipy.io import loadmat

            raw = loadmat(root / "coco/coco_stuff_10k/annotations" / f"{path.stem}.mat")["S"]
        else:
            raw_path = record["sem_seg_file_name"].replace(f"{sources[case]}_detectron2", sources[case])
            with Image.open(raw_path) as image:
                raw = np.array(image)
        right = np.ones(truth.shape, dtype=bool)
        right.ravel()[::5] = False
        right &= truth != 255
        np.testing.assert_array_equal(predicted[right], raw[right])
        assert (predicted != raw).ravel()[::5].all()


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's loaders keep the root that they were imported with")
def test_the_official_scorer_of_cityscapes_agrees(root, tmp_path):
    official.write_cityscapes(root, count=6)
    carry_out(PLANNERS["cityscapes"](root), root)
    name = "cityscapes_fine_sem_seg_val"
    results = evaluate(name, 19, tmp_path / "out", CITYSCAPES_SCORER=True)
    ours, theirs = results["sem_seg"], results["official"]
    per_class = {key: score for key, score in ours.items() if key.startswith("IoU-")}
    assert len(per_class) == 19
    assert all(score == pytest.approx(theirs[key], abs=1e-6) for key, score in per_class.items())
    assert ours["mIoU"] == pytest.approx(theirs["IoU"], abs=1e-6)
    assert 0 < ours["mIoU"] < 100


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's loaders keep the root that they were imported with")
def test_images_without_truth_are_predicted_and_not_scored(root, tmp_path):
    official.write_cityscapes(root)
    name = "cityscapes_fine_sem_seg_test"
    with pytest.raises(InputError, match=r"TEST\.SUBMISSION True"):
        evaluate(name, 19, tmp_path / "out")
    assert evaluate(name, 19, tmp_path / "out", SUBMISSION=True) == {}
    files = sorted((tmp_path / "out" / "submission").iterdir())
    assert [path.name for path in files] == [f"bonn_00000{number}_000019.png" for number in range(3)]
    with Image.open(files[0]) as image:
        values = set(np.unique(np.array(image)).tolist())
    assert values <= set(official.CITYSCAPES_IDS)


def test_the_official_scorer_is_for_cityscapes(tmp_path):
    cfg = get_hicl_cfg()
    cfg.TEST.CITYSCAPES_SCORER = True
    with pytest.raises(InputError, match="is not Cityscapes"):
        build_evaluator(cfg, "parts_val", tmp_path)
