"""Learning curves, read from a training's ``metrics.json``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hicl_d2.harness.progress import METRICS_FILE

if TYPE_CHECKING:
    import pandas as pd

LOSS = "total_loss"
# The loss of the contrast; its scale differs between methods and weights.
ADDED = "loss_hicl"


def read_curve(folder: Path, name: str) -> "pd.Series":
    """Return a scalar by iteration (from 1), as ``metrics.json`` has it; empty if it is not there.

    The loss is the model's own, without what the branch adds, so that methods can be compared. Both are medians over some
    iterations in the file, so what is left is near the median of the differences, not equal to it.
    """
    import pandas as pd

    found: dict[int, float] = {}
    path = folder / METRICS_FILE
    try:
        is_file = path.is_file()  # a pipe would be waited for
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if is_file else []
    except OSError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
            added = float(entry.get(ADDED, 0.0)) if name == LOSS else 0.0
            found[int(entry["iteration"]) + 1] = float(entry[name]) - added
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # another scalar, or a line that was cut off
    return pd.Series(found, dtype=float).sort_index()


def band(curves: Iterable["pd.Series"]) -> "pd.DataFrame":
    """Return mean and standard deviation over the seeds that reached an iteration, by iteration."""
    import pandas as pd

    table = pd.concat(list(curves), axis=1)
    return pd.DataFrame({"mean": table.mean(axis=1), "std": table.std(axis=1).fillna(0.0)})
