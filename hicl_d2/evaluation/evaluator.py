"""The evaluator of semantic segmentation that feeds the confusion matrix."""

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.evaluation import DatasetEvaluator
from hicl_d2.d2.utils import comm
from hicl_d2.errors import InputError, listing
from hicl_d2.evaluation.confusion import ConfusionMatrix
from hicl_d2.evaluation.prediction import predicted_classes

logger = logging.getLogger(__name__)

SEMANTIC_TYPES = ("sem_seg", "cityscapes_sem_seg")
CONFUSION_FILE = "sem_seg_confusion.csv"


class SemSegConfusionEvaluator(DatasetEvaluator):
    """Score semantic predictions with one confusion matrix over the split; nothing is kept per image.

    The scores equal those of Detectron2's SemSegEvaluator. A label value that is no class is an error here,
    where that one counts it into another class.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        """Read the classes and the ignored value of ``dataset_name``; ``output_dir`` receives the confusion
        matrix.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.matrix = ConfusionMatrix(len(self.class_names), metadata.get("ignore_label", 255))
        self._truth_files: dict[str, str] = {}

    def reset(self) -> None:
        self.matrix.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Count one batch.

        Each output holds "sem_seg", scores (K, H, W) at the size of the label file; the label file is the
        input's "sem_seg_file_name", or the one that the catalog gives for its "file_name" (the mapper may
        have dropped it). Raises InputError, with the path, for a label file that cannot be read or does not
        fit.
        """
        for record, output in zip(inputs, outputs, strict=True):
            scores = output["sem_seg"]
            if len(scores) != len(self.class_names):
                known = len(self.class_names)
                raise InputError(
                    f"the model predicts {len(scores)} classes and {self.dataset_name} has {known}; "
                    f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {known}"
                )
            path = self._truth_file(record)
            truth = read_label_map(path)
            if truth.shape != scores.shape[1:]:
                height, width = scores.shape[1:]
                raise InputError(
                    f"{path}: the label map is {truth.shape[1]} x {truth.shape[0]} (width x height) "
                    f"and its image {width} x {height}; they must be equal"
                )
            try:
                self.matrix.update(predicted_classes(scores), truth)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None

    def _truth_file(self, record: dict[str, Any]) -> str:
        if "sem_seg_file_name" in record:
            return record["sem_seg_file_name"]
        if not self._truth_files:
            records = DatasetCatalog.get(self.dataset_name)
            self._truth_files = {
                r["file_name"]: r["sem_seg_file_name"] for r in records if "sem_seg_file_name" in r
            }
        if record["file_name"] not in self._truth_files:
            raise InputError(
                f"{self.dataset_name} has no label map for {record['file_name']}, so it cannot be scored"
            )
        return self._truth_files[record["file_name"]]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"sem_seg": scores in percent} over all processes, None on processes other than the main
        one.
        """
        total = self.matrix.reduce()
        if not comm.is_main_process():
            return None
        if self.output_dir is not None:
            _write_counts(self.output_dir / CONFUSION_FILE, total.counts, self.class_names)
        scores = {
            "mIoU": total.mean_iou(),
            "mAcc": total.mean_accuracy(),
            "fwIoU": total.frequency_weighted_iou(),
            "pACC": total.pixel_accuracy(),
        }
        scores.update(_per_class("IoU", self.class_names, total.iou()))
        scores.update(_per_class("ACC", self.class_names, total.accuracy()))
        return {"sem_seg": {name: 100 * score for name, score in scores.items()}}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> SemSegConfusionEvaluator:
    """Return the evaluator of ``dataset_name``, which writes into ``output_dir`` (default:
    OUTPUT_DIR/inference).

    Raises InputError for a data set that is not one of semantic segmentation.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in SEMANTIC_TYPES:
        raise InputError(
            f"the data set {dataset_name} has evaluator_type {kind!r} in its metadata; "
            f"semantic segmentation is scored for: {listing(SEMANTIC_TYPES)}"
        )
    return SemSegConfusionEvaluator(dataset_name, output_dir or os.path.join(cfg.OUTPUT_DIR, "inference"))


def read_label_map(path: str | Path) -> Tensor:
    """Return the label map of an image file, (H, W), uint8 or, for more than 8 bits, int64.

    Raises InputError for a file that is missing, broken, or has more than one channel.
    """
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: the label map cannot be read ({error})") from None
    if labels.ndim != 2:
        raise InputError(
            f"{path}: a label map has one channel with a class per pixel, this one has {labels.shape[2]}"
        )
    return torch.from_numpy(labels if labels.dtype == np.uint8 else labels.astype(np.int64))


def _per_class(metric: str, names: Sequence[str], scores: Tensor) -> dict[str, float]:
    return {f"{metric}-{name}": float(score) for name, score in zip(names, scores, strict=True)}


def _write_counts(path: Path, counts: Tensor, names: Sequence[str]) -> None:
    """Write the matrix as CSV, a row per true class and a column per predicted one, all at once or not at
    all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    unfinished.replace(path)
