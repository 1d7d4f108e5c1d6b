"""Predictions as the label files that a benchmark takes, and the official scorer of Cityscapes."""

import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import atomic_open


class SubmissionWriter:
    """Write predictions as PNGs of the benchmark's own labels, named after the images.

    ``label_ids`` gives the benchmark's label of each class: Cityscapes' ids 7 to 33, ADE20K's 1 to 150,
    COCO-Stuff's own.
    """

    def __init__(self, folder: Path, label_ids: Sequence[int]) -> None:
        self.folder = folder
        self.table = np.asarray(label_ids, dtype=np.uint8 if max(label_ids) < 256 else np.uint16)

    def write(self, record: dict[str, Any], prediction: np.ndarray) -> Path:
        """Write the prediction (H, W) of the image of ``record``, whole or not at all; return the file."""
        path = self.path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path, "wb", durable=False) as stream:
            Image.fromarray(self.table[prediction]).save(stream, format="PNG")
        return path

    def path(self, record: dict[str, Any]) -> Path:
        """Return the file that holds, or will hold, the prediction of a record."""
        name = record.get("image_id")
        return self.folder / f"{name if isinstance(name, str) else Path(record['file_name']).stem}.png"


def score_cityscapes(predictions: Sequence[Path], truths: Sequence[Path]) -> dict[str, float]:
    """Score label files of ids with cityscapesscripts; return "IoU" and "iou_category", and "IoU-<class>", in percent.

    The scorer compares ids, and counts a class that is predicted but not in the truth as 0, where our mean
    leaves it out. Its instance-weighted part is off: it calls a function that NumPy 2.4 no longer has.
    Raises InputError for a truth file that is missing.
    """
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scorer  # noqa: N813 - it is a module

    for path in truths:
        if not path.is_file():
            raise InputError(f"{path} does not exist; the official scorer needs the labelIds of gtFine")
    arguments = scorer.args
    arguments.evalInstLevelScore = False
    arguments.JSONOutput = False
    arguments.quiet = True
    try:
        with redirect_stdout(StringIO()):
            results = scorer.evaluateImgLists(list(map(str, predictions)), list(map(str, truths)), arguments)
    except SystemExit:  # it has written why
        raise InputError("cityscapesscripts could not score the predictions; its message is above") from None
    scores = {
        "IoU": results["averageScoreClasses"],
        "IoU_category": results["averageScoreCategories"],
        **{f"IoU-{name}": score for name, score in results["classScores"].items() if not math.isnan(score)},
    }
    return {name: 100 * float(score) for name, score in scores.items()}
