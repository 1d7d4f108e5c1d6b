"""The evaluator on a data set of files, against Detectron2's own evaluator behind the door."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.evaluation import DatasetEvaluators, inference_on_dataset
from hicl_d2.d2.projects import original
from hicl_d2.evaluation import SemSegConfusionEvaluator, build_evaluator

CLASSES = ["sky", "road", "car", "never seen"]


@pytest.fixture
def dataset(tmp_path):
    """Register five label maps of different sizes, with ignored pixels and without the last class."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(5):
        shape = (6 + index, 9 - index)
        labels = generator.choice([0, 1, 2, 255], shape).astype(np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(labels).save(path)
        records.append(
            {
                "file_name": f"{index}.jpg",
                "sem_seg_file_name": str(path),
                "height": shape[0],
                "width": shape[1],
            }
        )
    name = f"evaluator_test_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def random_model(inputs):
    """Return scores from a seed of the image's name."""
    outputs = []
    for record in inputs:
        generator = torch.Generator().manual_seed(int(Path(record["file_name"]).stem))
        outputs.append({"sem_seg": torch.randn(4, record["height"], record["width"], generator=generator)})
    return outputs


def batches(name, size=2, drop=()):
    records = [{k: v for k, v in record.items() if k not in drop} for record in DatasetCatalog.get(name)]
    return [records[start : start + size] for start in range(0, len(records), size)]


def counted_pixel_by_pixel(name):
    """Return the scores from sets of pixels, as they are defined."""
    truth, predicted = {c: set() for c in range(4)}, {c: set() for c in range(4)}
    for record in DatasetCatalog.get(name):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        prediction = random_model([record])[0]["sem_seg"].argmax(dim=0).numpy()
        for pixel in zip(*np.nonzero(labels != 255), strict=True):
            truth[labels[pixel]].add((record["file_name"], *pixel))
            predicted[prediction[pixel]].add((record["file_name"], *pixel))
    total, scores, present = sum(map(len, truth.values())), {}, [c for c in truth if truth[c]]
    for c, label in enumerate(CLASSES):
        hits, union = len(truth[c] & predicted[c]), len(truth[c] | predicted[c])
        scores[f"IoU-{label}"] = 100 * hits / union if truth[c] else math.nan
        scores[f"ACC-{label}"] = 100 * hits / len(truth[c]) if truth[c] else math.nan
    iou, accuracy = ([scores[f"{kind}-{CLASSES[c]}"] for c in present] for kind in ("IoU", "ACC"))
    return scores | {
        "mIoU": sum(iou) / len(present),
        "mAcc": sum(accuracy) / len(present),
        "fwIoU": sum(value * len(truth[c]) for value, c in zip(iou, present, strict=True)) / total,
        "pACC": 100 * sum(len(truth[c] & predicted[c]) for c in present) / total,
    }


def test_scores_follow_from_their_definitions_and_are_detectron2s(dataset, tmp_path):
    ours = inference_on_dataset(
        random_model, batches(dataset), build_evaluator(get_hicl_cfg(), dataset, tmp_path)
    )
    assert ours["sem_seg"] == pytest.approx(counted_pixel_by_pixel(dataset), nan_ok=True)
    peer = original("evaluation", "SemSegEvaluator")
    if peer is not None:
        theirs = inference_on_dataset(random_model, batches(dataset), peer(dataset, distributed=False))
        expected = {name.replace("mACC", "mAcc"): score for name, score in theirs["sem_seg"].items()}
        expected = {
            name: score for name, score in expected.items() if "Boundary" not in name and "B-I" not in name
        }
        assert ours["sem_seg"] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(ours["sem_seg"]["IoU-never seen"])
    assert list(ours["sem_seg"])[:4] == ["mIoU", "mAcc", "fwIoU", "pACC"]
    assert all(type(score) is float for score in ours["sem_seg"].values())


def test_the_label_file_comes_from_the_catalog_where_the_mapper_dropped_it(dataset):
    evaluator = SemSegConfusionEvaluator(dataset)
    full = inference_on_dataset(random_model, batches(dataset), evaluator)
    dropped = inference_on_dataset(random_model, batches(dataset, drop=["sem_seg_file_name"]), evaluator)
    assert full["sem_seg"] == pytest.approx(dropped["sem_seg"], nan_ok=True, abs=0)


def test_the_confusion_matrix_is_written_as_csv(dataset, tmp_path):
    evaluator = SemSegConfusionEvaluator(dataset, tmp_path / "new" / "folder")
    inference_on_dataset(random_model, batches(dataset), evaluator)
    with (tmp_path / "new" / "folder" / "sem_seg_confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true class", *CLASSES]
    assert [row[0] for row in rows[1:]] == CLASSES
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == evaluator.matrix.counts.tolist()
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["sem_seg_confusion.csv", "sem_seg_confusion.png"]


def test_a_second_pass_starts_from_nothing_and_nothing_is_kept_per_image(dataset):
    evaluator = SemSegConfusionEvaluator(dataset)
    inference_on_dataset(random_model, batches(dataset), evaluator)
    first = evaluator.matrix.counts.clone()
    sizes = {name: len(value) for name, value in vars(evaluator).items() if hasattr(value, "__len__")}
    inference_on_dataset(random_model, batches(dataset), evaluator)
    assert torch.equal(evaluator.matrix.counts, first)
    assert sizes == {name: len(value) for name, value in vars(evaluator).items() if hasattr(value, "__len__")}


def test_it_joins_other_evaluators(dataset):
    class Count(DatasetEvaluators):
        def evaluate(self):
            return {"other": {"count": 5}}

    both = inference_on_dataset(
        random_model, batches(dataset), [SemSegConfusionEvaluator(dataset), Count([])]
    )
    assert set(both) == {"sem_seg", "other"}


def test_a_label_that_is_no_class_names_file_and_value(dataset, tmp_path):
    labels = np.zeros((6, 9), dtype=np.uint8)
    labels[0, 0] = 7
    Image.fromarray(labels).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0\.png: label value 7 \(1 pixel\)"):
        inference_on_dataset(random_model, batches(dataset), SemSegConfusionEvaluator(dataset))


def test_sizes_that_differ_name_the_file_and_both_sizes(dataset, tmp_path):
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(
        InputError, match=r"0\.png: the label map is 8 x 6 \(width x height\) and its image 9 x 6"
    ):
        inference_on_dataset(random_model, batches(dataset), SemSegConfusionEvaluator(dataset))


def test_a_model_of_another_number_of_classes_names_the_key(dataset):
    with pytest.raises(
        InputError, match=r"predicts 19 classes .* has 4; set MODEL\.SEM_SEG_HEAD\.NUM_CLASSES to 4"
    ):
        SemSegConfusionEvaluator(dataset).process(
            batches(dataset)[0], [{"sem_seg": torch.zeros(19, 6, 9)}] * 2
        )


def test_an_image_without_a_label_map_cannot_be_scored(dataset):
    with pytest.raises(InputError, match=r"has no label map for missing\.jpg"):
        SemSegConfusionEvaluator(dataset).process(
            [{"file_name": "missing.jpg"}], [{"sem_seg": torch.zeros(4, 6, 9)}]
        )


def test_a_data_set_of_another_kind_is_refused():
    name = "evaluator_test_boxes"
    MetadataCatalog.get(name).set(evaluator_type="coco")
    cfg = get_hicl_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    with pytest.raises(InputError, match="evaluator_type 'coco'"):
        build_evaluator(cfg, name)
    MetadataCatalog.remove(name)


def test_the_default_output_folder_is_the_runs(dataset):
    cfg = get_hicl_cfg()
    cfg.OUTPUT_DIR = "somewhere"
    assert build_evaluator(cfg, dataset).output_dir == Path("somewhere/inference")
    cfg.DATASETS.TEST = (dataset, "another")
    assert build_evaluator(cfg, dataset).output_dir == Path("somewhere/inference", dataset)


def test_label_files_of_every_mode_count_alike_and_what_is_no_label_map_is_named(dataset, tmp_path):
    values = np.array([[0, 1, 2], [3, 255, 1]])
    palette = Image.fromarray(values.astype(np.uint8)).convert("P")
    palette.putpalette([number for value in range(256) for number in (255 - value, 7, value)])
    for name, picture in {
        "bytes.png": Image.fromarray(values.astype(np.uint8)),
        "palette.png": palette,
        "words.png": Image.fromarray(values.astype(np.uint16)),
        "colours.png": Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)),
    }.items():
        picture.save(tmp_path / name)
    (tmp_path / "half.png").write_bytes((tmp_path / "words.png").read_bytes()[:50])
    evaluator = SemSegConfusionEvaluator(dataset)
    outputs = [{"sem_seg": torch.zeros(4, 2, 3)}]  # class 0 everywhere
    for turn, name in enumerate(("bytes.png", "palette.png", "words.png"), start=1):
        evaluator.process([{"sem_seg_file_name": str(tmp_path / name)}], outputs)
        assert evaluator.matrix.counts.tolist() == [[turn * count, 0, 0, 0] for count in (1, 2, 1, 1)]
    for name, message in {
        "colours.png": "one channel of 8 or 16 bits",
        "half.png": "cannot be read",
        "absent.png": "does not exist",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            evaluator.process([{"sem_seg_file_name": str(tmp_path / name)}], outputs)
        assert name in str(error.value)


def test_huge_label_file_is_refused_with_the_limit(dataset, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((60, 60), dtype=np.uint8)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    evaluator = SemSegConfusionEvaluator(dataset)
    with pytest.raises(InputError, match="raise HICL_MAX_IMAGE_PIXELS"):
        evaluator.process(
            [{"sem_seg_file_name": str(tmp_path / "huge.png")}], [{"sem_seg": torch.zeros(4, 60, 60)}]
        )


def test_more_measures_are_scored_when_asked_for(dataset, tmp_path):
    cfg = get_hicl_cfg()
    plain = inference_on_dataset(random_model, batches(dataset), build_evaluator(cfg, dataset, tmp_path))
    cfg.TEST.BOUNDARY_DISTANCE = 0.02
    cfg.TEST.OBJECT_SIZES = True
    more = inference_on_dataset(random_model, batches(dataset), build_evaluator(cfg, dataset, tmp_path))
    assert plain["sem_seg"].items() <= more["sem_seg"].items() | {
        (name, score) for name, score in plain["sem_seg"].items() if math.isnan(score)
    }
    added = [name for name in more["sem_seg"] if name not in plain["sem_seg"] and "-" not in name]
    assert added == ["mBoundaryIoU", "mBoundaryF", "mACC_small", "mACC_medium", "mACC_large"]
    per_class = [more["sem_seg"][f"BoundaryIoU-{name}"] for name in CLASSES[:3]]
    assert more["sem_seg"]["mBoundaryIoU"] == pytest.approx(sum(per_class) / 3)
    assert math.isnan(more["sem_seg"]["BoundaryF-never seen"])
    # All objects of these images are small: their accuracy is the accuracy.
    assert more["sem_seg"]["mACC_small"] == pytest.approx(more["sem_seg"]["mAcc"])
