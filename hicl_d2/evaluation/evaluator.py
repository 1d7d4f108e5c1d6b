"""The evaluator of semantic segmentation that feeds the confusion matrix."""

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hicl_d2.command.errors import InputError, counted, listing
from hicl_d2.command.files import atomic_open
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.evaluation import DatasetEvaluator, DatasetEvaluators
from hicl_d2.d2.utils import comm
from hicl_d2.data.names import file_stem
from hicl_d2.evaluation.boundary import BoundaryCounts
from hicl_d2.evaluation.confusion import ConfusionMatrix, summed_over_processes
from hicl_d2.evaluation.instances import INSTANCE_TYPES, build_instance_evaluators
from hicl_d2.evaluation.objects import ObjectSizeCounts
from hicl_d2.evaluation.prediction import predicted_classes
from hicl_d2.evaluation.registry import build_registered
from hicl_d2.evaluation.submission import SubmissionWriter, score_cityscapes
from hicl_d2.modeling.settings import gives_semantics, needs_instances
from hicl_d2.reading import read_labels
from hicl_d2.visualization.confusion import draw_confusion

logger = logging.getLogger(__name__)

SEMANTIC_TYPES = ("sem_seg", "cityscapes_sem_seg")
CONFUSION_FILE = "sem_seg_confusion.csv"
CONFUSION_PICTURE = "sem_seg_confusion.png"
SUBMISSION_FOLDER = "submission"


class Measure(Protocol):
    """What else is counted beside the confusion matrix, on the CPU."""

    counts: Tensor

    def reset(self) -> None: ...

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None: ...

    def scores(self, counts: Tensor) -> dict[str, Tensor]: ...


class SemSegConfusionEvaluator(DatasetEvaluator):
    """Score semantic predictions with one confusion matrix over the split; nothing is kept per image.

    The scores equal those of Detectron2's SemSegEvaluator. A label value that is no class is an error here,
    where that one counts it into another class.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        boundary_distance: float = 0.0,
        object_sizes: bool = False,
        submission: bool = False,
        official: bool = False,
    ) -> None:
        """Read the classes and the ignored value of ``dataset_name``.

        Args:
            dataset_name: a registered data set.
            output_dir: receives the confusion matrix as CSV and picture, and the submission.
            boundary_distance: share of an image's diagonal up to which pixels count as near a boundary; above 0,
                boundary IoU and boundary F are scored too.
            object_sizes: whether accuracy is scored by the size of objects too.
            submission: whether predictions are written as the benchmark's labels; images without truth are then
                welcome.
            official: whether the official scorer of Cityscapes runs on the written predictions.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.class_names: list[str] = list(metadata.stuff_classes)
        ignore_value = metadata.get("ignore_label", 255)
        self.matrix = ConfusionMatrix(len(self.class_names), ignore_value)
        self.measures: list[Measure] = []
        if boundary_distance > 0:
            self.measures.append(BoundaryCounts(len(self.class_names), ignore_value, boundary_distance))
        if object_sizes:
            self.measures.append(ObjectSizeCounts(len(self.class_names), ignore_value))
        if official and metadata.get("evaluator_type") != "cityscapes_sem_seg":
            raise InputError(
                f"TEST.CITYSCAPES_SCORER is on, but {dataset_name} is not Cityscapes; switch it off"
            )
        self.official = official
        self.writer: SubmissionWriter | None = None
        if submission or official:
            if self.output_dir is None:
                raise ValueError("a submission needs output_dir")
            label_ids = metadata.get("label_ids") or range(len(self.class_names))
            self.writer = SubmissionWriter(self.output_dir / SUBMISSION_FOLDER, label_ids)
        self._truth_files: dict[str, str] | None = None

    def reset(self) -> None:
        self.matrix.reset()
        for measure in self.measures:
            measure.reset()

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
                    f"the model predicts {counted(len(scores), 'class', 'classes')} and {self.dataset_name} has {known}; "
                    f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {known}"
                )
            prediction = predicted_classes(scores)
            if self.writer is not None:
                self.writer.write(record, prediction.cpu().numpy())
            path = self._truth_file(record)
            if path is not None:
                self._count(path, record, prediction)

    def _count(self, path: str, record: dict[str, Any], prediction: Tensor) -> None:
        labels = read_labels(path, record.get("file_name"), (prediction.shape[0], prediction.shape[1]))
        # A copy: what Pillow gives may not be written to, which torch warns of. It has no arithmetic of 16 bits.
        truth = torch.from_numpy(labels.astype(np.uint8 if labels.dtype == np.uint8 else np.int64))
        if truth.shape != prediction.shape:
            height, width = prediction.shape
            raise InputError(
                f"{path}: the label map is {truth.shape[1]} x {truth.shape[0]} (width x height) "
                f"and its image {width} x {height}; they must be equal"
            )
        try:
            self.matrix.update(prediction, truth)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if self.measures:
            classes = prediction.cpu().numpy()
            for measure in self.measures:
                measure.update(classes, truth.numpy())

    def _truth_file(self, record: dict[str, Any]) -> str | None:
        """Return the label file of a record; None where there is none and none is needed."""
        if "sem_seg_file_name" in record:
            return record["sem_seg_file_name"]
        found = self._catalog().get(record["file_name"])
        if found is None and (self.writer is None or self.official):
            raise InputError(
                f"{self.dataset_name} has no label map for {record['file_name']}, so it cannot be scored "
                "(predictions alone are written with TEST.SUBMISSION True)"
            )
        return found

    def _catalog(self) -> dict[str, str]:
        if self._truth_files is None:
            records = DatasetCatalog.get(self.dataset_name)
            self._truth_files = {
                r["file_name"]: r["sem_seg_file_name"] for r in records if "sem_seg_file_name" in r
            }
        return self._truth_files

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"sem_seg": scores in percent} over all processes, None on processes other than the main
        one.

        With the official scorer there is also "official"; where no image had a truth, there are no scores.
        """
        total = self.matrix.reduce()
        counts = [summed_over_processes(measure.counts) for measure in self.measures]
        comm.synchronize()  # all predictions are written
        if not comm.is_main_process():
            return None
        if self.writer is not None:
            logger.info(f"Predictions in the benchmark's labels are in {self.writer.folder}")
        if self.writer is not None and not total.counts.sum():
            return {}
        if self.output_dir is not None:
            _write_counts(self.output_dir / CONFUSION_FILE, total.counts, self.class_names)
            _write_picture(self.output_dir / CONFUSION_PICTURE, total.counts, self.class_names)
        scores = {
            "mIoU": total.mean_iou(),
            "mAcc": total.mean_accuracy(),
            "fwIoU": total.frequency_weighted_iou(),
            "pACC": total.pixel_accuracy(),
        }
        per_class = {"IoU": total.iou(), "ACC": total.accuracy()}
        for measure, count in zip(self.measures, counts, strict=True):
            more = measure.scores(count)
            scores.update({f"m{name}": float(values.nanmean()) for name, values in more.items()})
            per_class.update(more)
        for name, values in per_class.items():
            scores.update(_per_class(name, self.class_names, values))
        results = {"sem_seg": {name: 100 * score for name, score in scores.items()}}
        if self.official:
            results["official"] = self._official()
        return results

    def _official(self) -> dict[str, float]:
        assert self.writer is not None
        records = [r for r in DatasetCatalog.get(self.dataset_name) if "sem_seg_file_name" in r]
        truths = [Path(r["sem_seg_file_name"].replace("labelTrainIds", "labelIds")) for r in records]
        return score_cityscapes([self.writer.path(record) for record in records], truths)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> DatasetEvaluator:
    """Return the evaluator of ``dataset_name``, which writes into ``output_dir``.

    By default that is OUTPUT_DIR/inference, and a folder of the data set's own in it where DATASETS.TEST names several.

    Those of TEST.EVALUATORS run beside it. Raises InputError for a data set that is not one of semantic segmentation, and for
    a name that is not registered.
    """
    own = [file_stem(dataset_name)] if len(cfg.DATASETS.TEST) > 1 else []
    folder = str(output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", *own))
    others = build_registered(cfg, dataset_name, folder)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if needs_instances(cfg) and kind in INSTANCE_TYPES:
        others += build_instance_evaluators(cfg, dataset_name, folder)
        return DatasetEvaluators(
            [_semantic(cfg, dataset_name, folder), *others] if gives_semantics(cfg) else others
        )
    if kind not in SEMANTIC_TYPES:
        raise InputError(
            f"the data set {dataset_name} has evaluator_type {kind!r} in its metadata; "
            f"semantic segmentation is scored for: {listing(SEMANTIC_TYPES)}"
        )
    evaluator = _semantic(cfg, dataset_name, folder)
    return DatasetEvaluators([evaluator, *others]) if others else evaluator


def _semantic(cfg: CfgNode, dataset_name: str, folder: str) -> SemSegConfusionEvaluator:
    return SemSegConfusionEvaluator(
        dataset_name,
        folder,
        boundary_distance=cfg.TEST.BOUNDARY_DISTANCE,
        object_sizes=cfg.TEST.OBJECT_SIZES,
        submission=cfg.TEST.SUBMISSION,
        official=cfg.TEST.CITYSCAPES_SCORER,
    )


def _per_class(metric: str, names: Sequence[str], scores: Tensor) -> dict[str, float]:
    return {f"{metric}-{name}": float(score) for name, score in zip(names, scores, strict=True)}


def _write_counts(path: Path, counts: Tensor, names: Sequence[str]) -> None:
    """Write the matrix as CSV, a row per true class and a column per predicted one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))


def _write_picture(path: Path, counts: Tensor, names: Sequence[str]) -> None:
    with atomic_open(path, "wb") as stream:
        draw_confusion(counts.cpu().numpy(), names).save(stream, format="PNG")
