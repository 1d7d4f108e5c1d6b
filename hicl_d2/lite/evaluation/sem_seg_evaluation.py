"""Detectron2's evaluator of semantic segmentation: its scores and the two files it leaves."""

import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.lite.data.catalog import DatasetCatalog, MetadataCatalog
from hicl_d2.lite.evaluation.evaluator import DatasetEvaluator
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.file_io import PathManager

logger = logging.getLogger(__name__)


def load_image_into_numpy_array(filename: str, dtype: Any = None) -> np.ndarray:
    """Return the image file as an array (H, W) or (H, W, C) of ``dtype``, by default the file's own."""
    with PathManager.open(filename, "rb") as file:
        return np.asarray(Image.open(file), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """Score label maps against the data set's, and keep them as run-length codes for
    ``sem_seg_predictions.json``.

    For Detectron2's sake; :class:`hicl_d2.evaluation.SemSegConfusionEvaluator` gives the same scores, faster
    and without keeping anything per image. Boundary IoU, which Detectron2 adds where OpenCV is installed, is
    not here.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name, self._distributed, self._output_dir = dataset_name, distributed, output_dir
        self._load = sem_seg_loading_fn
        self._class_names: list[str] = list(metadata.stuff_classes)
        self._num_classes = len(self._class_names)
        assert num_classes in (None, self._num_classes), f"{dataset_name} has {self._num_classes} classes"
        self._ignore_label = metadata.ignore_label if ignore_label is None else ignore_label
        records = DatasetCatalog.get(dataset_name)
        self._truth_file = {record["file_name"]: record["sem_seg_file_name"] for record in records}
        contiguous = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._dataset_id = None if contiguous is None else {label: own for own, label in contiguous.items()}
        self.reset()

    def reset(self) -> None:
        # One more row and column than classes: the last holds what is ignored in the truth.
        self._counts = np.zeros((self._num_classes + 1,) * 2, dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, torch.Tensor]]) -> None:
        """Count one batch; each output holds "sem_seg", scores (K, H, W) at the size of the image file."""
        for record, output in zip(inputs, outputs, strict=False):
            prediction = output["sem_seg"].argmax(dim=0).cpu().numpy()
            truth = self._truth(record["file_name"])
            cells = prediction.reshape(-1) * (self._num_classes + 1) + truth.reshape(-1)
            self._counts += np.bincount(cells, minlength=self._counts.size).reshape(self._counts.shape)
            self._predictions.extend(self.encode_json_sem_seg(prediction, record["file_name"]))

    def _truth(self, image_file: str) -> np.ndarray:
        path = self._truth_file[image_file]
        labels = np.array(self._load(path, dtype=int))
        ignored = labels == self._ignore_label
        wrong = labels[~ignored & ((labels < 0) | (labels >= self._num_classes))]
        if wrong.size:
            raise InputError(
                f"{path}: label value {wrong[0]} is none of the {self._num_classes} classes of "
                f"{self._dataset_name} and not the ignored value {self._ignore_label}; correct the label map"
            )
        labels[ignored] = self._num_classes
        return labels

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Return one COCO "stuff" entry per label of ``sem_seg`` (H, W): file, category and mask."""
        from pycocotools import mask as coco_mask

        entries = []
        for label in np.unique(sem_seg).tolist():
            code = coco_mask.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            segmentation = {"size": code["size"], "counts": code["counts"].decode("utf-8")}
            category = label if self._dataset_id is None else self._dataset_id[label]
            entries.append(
                {"file_name": input_file_name, "category_id": category, "segmentation": segmentation}
            )
        return entries

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"sem_seg": scores in percent} on the main process, and write them where there is an output
        folder.
        """
        counts, predictions = self._counts, self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.all_gather(counts)
            predictions = list(itertools.chain.from_iterable(comm.all_gather(predictions)))
            if not comm.is_main_process():
                return None
            counts = np.sum(gathered, axis=0)
        scores = self._scores(counts[:-1, :-1])
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as file:
                file.write(json.dumps(predictions))
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as file:
                torch.save(scores, file)
        results = {"sem_seg": scores}
        logger.info(results)
        return results

    def _scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return the scores of ``counts`` (predicted, true class); nan, and not averaged, without truth."""
        hits = np.diagonal(counts).astype(float)
        truth = counts.sum(axis=0).astype(float)
        union = truth + counts.sum(axis=1) - hits
        with np.errstate(divide="ignore", invalid="ignore"):
            accuracy = np.where(truth > 0, hits / truth, np.nan)
            iou = np.where(truth > 0, hits / union, np.nan)
            weighted = np.nansum(iou * (truth / truth.sum()))
            overall = hits.sum() / truth.sum()
        present = truth > 0
        scores = {
            "mIoU": iou[present].mean() if present.any() else np.nan,
            "fwIoU": weighted,
            **{f"IoU-{name}": value for name, value in zip(self._class_names, iou, strict=True)},
            "mACC": accuracy[present].mean() if present.any() else np.nan,
            "pACC": overall,
            **{f"ACC-{name}": value for name, value in zip(self._class_names, accuracy, strict=True)},
        }
        return {name: 100 * float(value) for name, value in scores.items()}
