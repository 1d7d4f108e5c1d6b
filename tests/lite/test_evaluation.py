"""The loop over a data set, Detectron2's evaluator, and what is done with results."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.lite import evaluation
from hicl_d2.lite.config import get_cfg
from hicl_d2.lite.data import DatasetCatalog, MetadataCatalog
from hicl_d2.lite.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    flatten_results_dict,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)

TRUTH = np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 1, 2]])


@pytest.fixture
def dataset(tmp_path):
    Image.fromarray(TRUTH).save(tmp_path / "truth.png")
    name = f"lite_evaluation_{tmp_path.name}"
    record = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["sky", "road", "car"], ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def scores_of(labels):
    return torch.from_numpy(np.eye(3, dtype=np.float32)[labels]).permute(2, 0, 1)


def run(name, labels=PREDICTION, **options):
    loader = [[{"file_name": "image.jpg"}]]
    evaluator = SemSegEvaluator(name, **options)
    return inference_on_dataset(lambda inputs: [{"sem_seg": scores_of(labels)}], loader, evaluator)


def test_scores_follow_from_the_definitions(dataset):
    # truth: sky 2, road 3; predicted on them: sky 1 (right), road 4 (3 right); the ignored pixel counts
    # nowhere
    scores = run(dataset)["sem_seg"]
    assert scores["IoU-sky"] == pytest.approx(50.0)
    assert scores["IoU-road"] == pytest.approx(75.0)
    assert math.isnan(scores["IoU-car"])
    assert scores["mIoU"] == pytest.approx(62.5)
    assert scores["fwIoU"] == pytest.approx(100 * (2 / 5 * 0.5 + 3 / 5 * 0.75))
    assert scores["mACC"] == pytest.approx(75.0)
    assert scores["pACC"] == pytest.approx(80.0)
    assert scores["ACC-sky"] == pytest.approx(50.0)


def test_files_hold_the_scores_and_every_predicted_mask(dataset, tmp_path):
    scores = run(dataset, output_dir=str(tmp_path / "out"))["sem_seg"]
    # readable under torch's safe default: no NumPy scalar inside
    saved = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True)
    assert saved == pytest.approx(scores, nan_ok=True)
    entries = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [entry["category_id"] for entry in entries] == [0, 1, 2]
    for entry in entries:
        assert entry["file_name"] == "image.jpg"
        assert (coco_mask.decode(entry["segmentation"]) == (entry["category_id"] == PREDICTION)).all()


def test_categories_are_the_data_sets_own_ids(dataset, tmp_path):
    MetadataCatalog.get(dataset).stuff_dataset_id_to_contiguous_id = {7: 0, 8: 1, 21: 2}
    run(dataset, output_dir=str(tmp_path))
    entries = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert [entry["category_id"] for entry in entries] == [7, 8, 21]


@pytest.mark.parametrize("value", [3, 4, 17])
def test_a_label_outside_the_classes_is_an_error(dataset, tmp_path, value):
    Image.fromarray(np.full((2, 3), value, dtype=np.uint8)).save(tmp_path / "truth.png")
    with pytest.raises(InputError, match=rf"truth\.png: label value {value} is none of the 3 classes"):
        run(dataset)


class Recorder(DatasetEvaluator):
    def __init__(self, result, log):
        self.result, self.log = result, log

    def reset(self):
        self.log.append("reset")

    def process(self, inputs, outputs):
        self.log.append(("process", inputs, outputs))

    def evaluate(self):
        self.log.append("evaluate")
        return self.result


class Model(nn.Module):
    def __init__(self, log=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.log = [] if log is None else log

    def forward(self, inputs):
        self.log.append("forward")
        assert not self.training
        assert not (self.weight * 2).requires_grad
        if inputs == "broken":
            raise RuntimeError("broken input")
        return inputs


def test_the_loop_runs_in_eval_mode_without_gradients_and_calls_back_in_order():
    log = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: (lambda name=name: log.append(name)) for name in names}
    model = Model(log).train()
    result = inference_on_dataset(model, ["a", "b"], Recorder({"task": {"score": 1}}, log), callbacks)
    assert result == {"task": {"score": 1}}
    assert model.training
    batch = ["before_inference", "forward", "after_inference"]
    expected = [
        "reset",
        "on_start",
        *batch,
        ("process", "a", "a"),
        *batch,
        ("process", "b", "b"),
        "on_end",
        "evaluate",
    ]
    assert log == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_after_an_error(training):
    model = Model().train(training)
    with pytest.raises(RuntimeError, match="broken input"):
        inference_on_dataset(model, ["broken"], None)
    assert model.training is training


def test_no_evaluator_and_an_evaluator_without_a_result_give_an_empty_result():
    assert inference_on_dataset(Model(), ["a"], None) == {}
    assert inference_on_dataset(Model(), ["a"], Recorder(None, [])) == {}
    assert inference_on_dataset(Model(), [], None) == {}


def test_time_is_logged_in_the_words_that_log_readers_look_for(caplog, monkeypatch):
    monkeypatch.setattr(evaluation.evaluator, "SECONDS_BETWEEN_REPORTS", 0)
    with caplog.at_level(logging.INFO):
        inference_on_dataset(Model(), list(range(20)), None)
    text = caplog.text
    assert "Start inference on 20 batches" in text
    assert "Inference done 11/20. Dataloading: " in text
    assert "Total inference time: 0:00:0" in text
    assert " s / iter per device, on 1 devices)" in text


def test_several_evaluators_are_joined_and_the_same_task_twice_is_refused():
    first, second = Recorder({"a": 1}, []), Recorder({"b": 2}, [])
    assert inference_on_dataset(Model(), ["x"], [first, second]) == {"a": 1, "b": 2}
    with pytest.raises(AssertionError, match="same task: a"):
        DatasetEvaluators([first, first]).evaluate()


def test_main_metrics_are_shown_as_comma_separated_lines(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"sem_seg": {"mIoU": 12.34567, "IoU-sky": 1.0, "pACC": 2.0}, "note": "text"})
    assert caplog.messages == [
        "copypaste: Task: sem_seg",
        "copypaste: mIoU,pACC",
        "copypaste: 12.3457,2.0000",
        "copypaste: note=text",
    ]


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ([], True),
        ([["sem_seg", "mIoU", 50.0, 1.0]], True),
        ([["sem_seg", "mIoU", 49.0, 1.5], ["sem_seg", "pACC", 90.0, 0.1]], True),
        ([["sem_seg", "mIoU", 48.0, 1.0]], False),
        ([["sem_seg", "AP", 48.0, 1.0]], False),
        ([["sem_seg", "IoU-car", 48.0, 1000.0]], False),
    ],
)
def test_expected_results_hold_or_end_the_run(rows, holds):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = rows
    results = {"sem_seg": {"mIoU": 50.5, "pACC": 90.0, "IoU-car": math.nan}}
    if holds:
        assert verify_results(cfg, results) is True
    else:
        with pytest.raises(SystemExit) as end:
            verify_results(cfg, results)
        assert end.value.code == 1


def test_nested_results_become_one_level():
    assert flatten_results_dict({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a/b/c": 1, "a/d": 2, "e": 3}


def test_what_only_detectron2_has_says_so():
    with pytest.raises(ImportError, match=r"evaluation\.COCOEvaluator: this needs Detectron2"):
        _ = evaluation.COCOEvaluator
    with pytest.raises(AttributeError):
        _ = evaluation.NoSuchEvaluator
