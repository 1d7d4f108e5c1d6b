"""Pictures of what a model predicts on a data set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.command.files import atomic_open, write_json
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.visualization.colours import palette
from hicl_d2.visualization.sheet import class_iou, side_by_side

SCORES_FILE = "scores.json"

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def draw_pictures(
    mapper: Mapper, model: nn.Module, dataset_name: str, output_dir: str | Path, count: int
) -> list[Path]:
    """Run ``model`` on ``count`` evenly spaced images of ``dataset_name`` and draw image, truth and
    prediction.

    ``mapper`` turns a record, given without its label map, into an input of the model.
    Writes ``output_dir``/pictures/<name of the image>.png and returns the paths; fewer images than ``count``
    are all drawn. ``scores.json`` beside them has the mIoU of each image in percent (None without truth). The
    model is in eval mode meanwhile. One process alone calls this.
    """
    records = [record for record in DatasetCatalog.get(dataset_name) if "sem_seg_file_name" in record]
    chosen = evenly_spaced(records, count)
    if not chosen:
        return []
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the other processes take no part
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.stuff_classes
    colours = [tuple(colour) for colour in metadata.get("stuff_colors") or palette(len(classes))]
    ignore_value = metadata.get("ignore_label", 255)

    folder = Path(output_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    scores: dict[str, float | None] = {}
    was_training = model.training
    model.eval()
    try:
        for record, name in zip(chosen, _names(chosen), strict=True):
            prediction = _predict(model, mapper, record)
            with Image.open(record["file_name"]) as image, Image.open(record["sem_seg_file_name"]) as truth:
                labels = np.array(truth)
                scores[name] = _score(labels, prediction, len(classes), ignore_value)
                sheet = side_by_side(
                    image,
                    labels,
                    prediction,
                    classes,
                    colours,
                    ignore_value=ignore_value,
                    title=name,
                )
            path = folder / f"{name}.png"
            with atomic_open(path, "wb", durable=False) as stream:
                sheet.save(stream, format="PNG")
            paths.append(path)
    finally:
        model.train(was_training)
    write_json(folder / SCORES_FILE, scores)
    return paths


def evenly_spaced(records: Sequence[Any], count: int) -> list[Any]:
    """Return ``count`` of ``records`` (or all, if they are fewer), the middles of as many equal parts."""
    count = min(count, len(records))
    return [records[int((index + 0.5) * len(records) / count)] for index in range(count)]


def _names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name for each picture: the image's own, or with a number in front where two have the same."""
    stems = [Path(record["file_name"]).stem for record in records]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{index:03}_{stem}" for index, stem in enumerate(stems)]


@torch.no_grad()
def _predict(model: nn.Module, mapper: Mapper, record: dict[str, Any]) -> np.ndarray:
    """Return the predicted label map (H, W) at the image's own size."""
    plain = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
    output = model([mapper(plain)])[0]["sem_seg"]
    return output.argmax(dim=0).cpu().numpy()


def _score(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_value: int) -> float | None:
    """Return the mIoU of one image in percent, over the classes in its truth; None if it has none."""
    iou = class_iou(truth, prediction, num_classes, ignore_value)
    return None if np.isnan(iou).all() else round(100 * float(np.nanmean(iou)), 2)
