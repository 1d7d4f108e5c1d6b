"""Pictures of what a model predicts on a data set."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.command.errors import one_line
from hicl_d2.command.files import write_json
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.reading import open_image, read_labels
from hicl_d2.visualization.colours import palette
from hicl_d2.visualization.files import check_own, save_picture
from hicl_d2.visualization.sheet import class_iou, side_by_side

SCORES_FILE = "scores.json"

logger = logging.getLogger(__name__)


def draw_pictures(
    mapper: SemanticMapper, model: nn.Module, dataset_name: str, output_dir: str | Path, count: int
) -> list[Path]:
    """Run ``model`` on ``count`` evenly spaced images of ``dataset_name`` and draw image, truth and
    prediction.

    ``mapper`` turns a record without its label map into an input of the model.
    Writes ``output_dir``/pictures/<name of the image>.png and returns the paths; fewer images than ``count``
    are all drawn. ``scores.json`` beside them has the mIoU of each image in percent (None without truth). An image that
    cannot be read, predicted or drawn is a warning. The model is in eval mode meanwhile. One process alone calls this.
    Raises InputError for a file that has the name of a picture and is the user's.
    """
    records = [record for record in DatasetCatalog.get(dataset_name) if "sem_seg_file_name" in record]
    chosen = evenly_spaced(records, count)
    if not chosen:
        return []
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the other processes take no part
    folder = Path(output_dir) / "pictures"
    names = picture_names(chosen)
    check_own((folder / f"{name}.png" for name in names), "OUTPUT_DIR")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    scores: dict[str, float | None] = {}
    was_training = model.training
    model.eval()
    try:
        for record, name in zip(chosen, names, strict=True):
            try:
                sheet, score = _draw(model, mapper, record, dataset_name, name)
            except Exception as error:  # whatever one image raises, the others are drawn
                logger.warning(
                    f"{record['file_name']} was not drawn: {type(error).__name__}: {one_line(error)}"
                )
                continue
            scores[name] = score
            paths.append(folder / f"{name}.png")
            save_picture(sheet, paths[-1], durable=False)
    finally:
        model.train(was_training)
    write_json(folder / SCORES_FILE, scores)
    return paths


def _draw(
    model: nn.Module, mapper: SemanticMapper, record: dict[str, Any], dataset_name: str, title: str
) -> tuple[Image.Image, float | None]:
    """Return the sheet of one record, and the mIoU of its image."""
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.stuff_classes
    colours = [tuple(colour) for colour in metadata.get("stuff_colors") or palette(len(classes))]
    ignore_value = metadata.get("ignore_label", 255)
    image = open_image(record["file_name"])
    labels = read_labels(record["sem_seg_file_name"], record["file_name"], (image.height, image.width))
    prediction = _predict(model, mapper, record, image)
    sheet = side_by_side(image, labels, prediction, classes, colours, ignore_value=ignore_value, title=title)
    return sheet, _score(labels, prediction, len(classes), ignore_value)


def evenly_spaced(records: Sequence[Any], count: int) -> list[Any]:
    """Return ``count`` of ``records`` (or all, if they are fewer), the middles of as many equal parts."""
    count = min(count, len(records))
    return [records[int((index + 0.5) * len(records) / count)] for index in range(count)]


def picture_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name for each picture: the image's own, or with a number in front where two have the same."""
    stems = [Path(record["file_name"]).stem for record in records]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{index:03}_{stem}" for index, stem in enumerate(stems)]


@torch.no_grad()
def _predict(
    model: nn.Module, mapper: SemanticMapper, record: dict[str, Any], image: Image.Image
) -> np.ndarray:
    """Return the predicted label map (H, W) at the image's own size."""
    plain = {**record, "height": image.height, "width": image.width}
    output = model([mapper.transform(plain, image)])[0]["sem_seg"]
    return output.argmax(dim=0).cpu().numpy()


def _score(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_value: int) -> float | None:
    """Return the mIoU of one image in percent, over the classes in its truth; None if it has none."""
    iou = class_iou(truth, prediction, num_classes, ignore_value)
    return None if np.isnan(iou).all() else round(100 * float(np.nanmean(iou)), 2)
