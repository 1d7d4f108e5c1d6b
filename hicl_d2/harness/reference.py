"""Figures that others have published, with protocol and source; they never enter a computation of ours."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hicl_d2.command.errors import InputError
from hicl_d2.harness import ROOT
from hicl_d2.harness.matrix import Matrix

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_FILE = ROOT / "benchmark" / "reference.csv"
COLUMNS = ("dataset", "model", "method", "metric", "value", "protocol", "source")


@cache
def read_reference(path: Path = REFERENCE_FILE) -> "pd.DataFrame":
    """Return all published figures; InputError if one lacks a value, a protocol or a source."""
    import pandas as pd

    frame = pd.read_csv(path, dtype={"value": float})
    if tuple(frame.columns) != COLUMNS:
        raise InputError(f"{path} must have the columns {', '.join(COLUMNS)}")
    bare = frame[frame[["dataset", "model", "metric", "value", "protocol", "source"]].isna().any(axis=1)]
    if len(bare):
        raise InputError(f"{path}:{bare.index[0] + 2}: every figure needs a protocol and a source")
    return frame


def published(matrix: Matrix) -> "pd.DataFrame":
    """Return the figures on the matrix's data sets, as text."""
    frame = read_reference()
    frame = frame[frame["dataset"].isin({cell.dataset for cell in matrix.cells})].copy()
    frame["value"] = frame["value"].map("{:.2f}".format)
    frame["method"] = frame["method"].astype(object).fillna("")
    return frame.reset_index(drop=True)
