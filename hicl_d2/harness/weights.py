"""The weights that cells start from: which are here, which will be fetched, and which nobody can get."""

import os
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from hicl_d2.command.address import DOWNLOAD, ZOO, check_address, checksum, is_address, local_file, place_of
from hicl_d2.command.errors import InputError, counted
from hicl_d2.harness.cells import Cell

KEY = "MODEL.WEIGHTS"
# Weights in an installed package, which the training finds.
PACKAGE = "package://"


class Need(NamedTuple):
    """Weights that are not here: of how many cells, what happens, and whether nothing can get them."""

    weights: str
    cells: int
    text: str
    is_missing: bool


def allow_download() -> None:
    """Let the trainings fetch weights from an https address without a checksum (``--download``)."""
    os.environ[DOWNLOAD] = "1"


def needs(cells: Iterable[Cell]) -> list[Need]:
    """Return the weights of ``cells`` that are not on this machine, those that cannot be had first."""
    counts = Counter(cell.resolved.get(KEY) for cell in cells)
    found = [
        _need(weights, count) for weights, count in counts.items() if isinstance(weights, str) and weights
    ]
    return sorted((need for need in found if need is not None), key=lambda need: (not need.is_missing, need))


def _need(weights: str, cells: int) -> Need | None:
    if weights.startswith(PACKAGE):  # whose check names what is missing
        return None
    if not is_address(weights):
        if local_file(weights).exists():
            return None
        return Need(weights, cells, f"weights {weights} do not exist", True)
    try:
        check_address(weights)
    except InputError as error:
        return Need(weights, cells, str(error), True)
    if weights.startswith("catalog://") or place_of(weights).is_file():
        return None
    is_known = checksum(weights) is not None
    how = "and compared with their checksum" if is_known else "without a checksum"
    if weights.partition("://")[0] in ZOO:
        how = "from Detectron2's model zoo"
    place = place_of(weights)
    text = (
        f"weights {weights} will be fetched {how}; without a connection put {place.name} into {place.parent}"
    )
    return Need(weights, cells, text, False)


def missing(cells: Iterable[Cell]) -> dict[str, str]:
    """Return the weights that cannot be had, and why."""
    return {need.weights: need.text for need in needs(cells) if need.is_missing}


def describe(cells: Iterable[Cell]) -> list[str]:
    """Return a line for each of the weights that are not here."""
    return [f"{need.text} ({counted(need.cells, 'cell')})" for need in needs(cells)]


def check(cells: Iterable[Cell]) -> None:
    """Raise InputError if the weights of a cell cannot be had: nothing is started before all can be finished."""
    missing = [need for need in needs(cells) if need.is_missing]
    if missing:
        more = f" and {len(missing) - 1} more weights (plan lists them)" if len(missing) > 1 else ""
        raise InputError(f"{missing[0].text} ({counted(missing[0].cells, 'cell')}){more}")
