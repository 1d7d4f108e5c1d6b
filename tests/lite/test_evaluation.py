"""The loop over a data set, and what is done with results."""

import logging
import math

import pytest
import torch
from torch import nn

from hicl_d2.lite import evaluation
from hicl_d2.lite.config import get_cfg
from hicl_d2.lite.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from hicl_d2.lite.evaluation.testing import flatten_results_dict


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
