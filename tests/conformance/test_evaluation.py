"""Evaluation gives Detectron2's figures and log lines."""

import logging
import math
import tempfile
import uuid
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hicl_d2.d2 import data as project_data
from hicl_d2.evaluation import SemSegConfusionEvaluator
from tests.conformance.runtimes import golden, load, needs_detectron2, plain

CLASSES = ["sky", "road", "car", "pole", "never seen"]
SHAPES = [(13, 17), (20, 11), (8, 8), (16, 9)]


def figures(runtime):
    """Score four images, and note what the loop, the joined evaluators and the functions on results give."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "scores": _scored(runtime, Path(folder)),
            "joined": _joined(runtime),
            "verified": [_verified(runtime, rows) for rows in EXPECTATIONS],
            "shown": _shown(runtime),
            "flat": load(runtime, "evaluation.testing").flatten_results_dict({"a": {"b": {"c": 1}}, "d": 2}),
        }


def _scored(runtime, folder):
    """Return the scores of Detectron2's evaluator, or of the project's, which is held to it."""
    data = load(runtime, "data") if runtime == "detectron2" else project_data
    evaluate = load(runtime, "evaluation").inference_on_dataset
    generator = np.random.default_rng(7)
    records, scores = [], {}
    for index, shape in enumerate(SHAPES):
        labels = generator.choice([0, 1, 2, 3, 255], shape, p=[0.4, 0.3, 0.15, 0.05, 0.1]).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{index}.png")
        label_file = str(folder / f"{index}.png")
        record = {"file_name": f"{index}.jpg", "sem_seg_file_name": label_file}
        records.append({**record, "height": shape[0], "width": shape[1]})
        # a few score levels, so that classes tie
        values = generator.integers(0, 4, (len(CLASSES), *shape)) + 2 * (
            np.arange(5)[:, None, None] == labels
        )
        scores[f"{index}.jpg"] = torch.from_numpy(values.astype(np.float32))

    name = f"conformance_{uuid.uuid4().hex}"
    data.DatasetCatalog.register(name, lambda: records)
    data.MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
    if runtime == "detectron2":
        evaluator = load(runtime, "evaluation").SemSegEvaluator(name, distributed=True)
    else:
        evaluator = SemSegConfusionEvaluator(name)
    batches = [records[start : start + 2] for start in (0, 2)]
    results = evaluate(
        lambda inputs: [{"sem_seg": scores[record["file_name"]]} for record in inputs], batches, evaluator
    )
    return _comparable(results["sem_seg"])


def _comparable(scores):
    """Drop boundary scores, which Detectron2 adds where OpenCV is installed; write nan as a word."""
    kept = {name: value for name, value in scores.items() if "Boundary" not in name and "B-I" not in name}
    return {
        name.replace("mAcc", "mACC"): "nan" if math.isnan(value) else round(float(value), 9)
        for name, value in kept.items()
    }


def _joined(runtime):
    """Note what the base classes do with two evaluators, with none, and with a task given twice."""
    evaluation = load(runtime, "evaluation")

    class Fixed(evaluation.DatasetEvaluator):
        def __init__(self, result):
            self.result = result

        def evaluate(self):
            return self.result

    loader = [[1], [2]]
    several = [Fixed({"a": {"x": 1.0}}), Fixed(None), Fixed({"b": {"x": 2.0}})]
    try:
        evaluation.DatasetEvaluators([Fixed({"a": 1}), Fixed({"a": 1})]).evaluate()
        twice = "accepted"
    except AssertionError:
        twice = "refused"
    model = torch.nn.Identity().train()
    inside = []
    model.register_forward_hook(lambda module, inputs, output: inside.append(module.training))
    evaluation.inference_on_dataset(model, loader, None)
    return {
        "several": evaluation.inference_on_dataset(lambda inputs: inputs, loader, several),
        "none": evaluation.inference_on_dataset(lambda inputs: inputs, loader, None),
        "no result": evaluation.inference_on_dataset(lambda inputs: inputs, loader, Fixed(None)),
        "base": evaluation.DatasetEvaluator().evaluate(),
        "twice": twice,
        "training": [*inside, model.training],
    }


EXPECTATIONS = [
    [],
    [["sem_seg", "mIoU", 50.0, 0.5]],
    [["sem_seg", "mIoU", 50.0, 0.4]],
    [["sem_seg", "absent", 50.0, 0.5]],
    [["sem_seg", "mIoU", 50.0, 0.5], ["sem_seg", "broken", 1.0, 100.0]],
]


def _verified(runtime, rows):
    cfg = load(runtime, "config").get_cfg()
    cfg.TEST.EXPECTED_RESULTS = rows
    try:
        return load(runtime, "evaluation").verify_results(
            cfg, {"sem_seg": {"mIoU": 50.5, "broken": math.inf}}
        )
    except SystemExit as end:
        return f"exit {end.code}"


def _shown(runtime):
    """Return the lines that print_csv_format logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(load(runtime, "evaluation.testing").__name__)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    load(runtime, "evaluation").print_csv_format(
        {"sem_seg": {"mIoU": 1.23456, "IoU-sky": 2.0, "pACC": 3.0}, "t": 5}
    )
    logger.removeHandler(handler)
    logger.setLevel(level)
    return lines


def test_lite_gives_the_recorded_figures():
    assert plain(figures("lite")) == golden("evaluation")


@needs_detectron2
def test_detectron2_gives_the_recorded_figures():
    assert plain(figures("detectron2")) == golden("evaluation")
