"""Pictures on which two methods differ most."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.results import number, read_json_file
from hicl_d2.harness.workspace import Workspace

SCORES_FILE = "scores.json"
EACH_WAY = 3
WIDTH = 1100


@dataclass(frozen=True)
class Pair:
    """One image under two methods with the same seed: where the pictures are, and the mIoU of each."""

    image: str
    first: Path
    second: Path
    first_score: float
    second_score: float
    seed: int

    @property
    def gain(self) -> float:
        return self.second_score - self.first_score


def largest(workspace: Workspace, place: tuple[str, str]) -> list[Pair]:
    """Return the images with the largest gains, then those with the largest losses; each image once."""
    by_image: dict[str, Pair] = {}
    for pair in _pairs(workspace, place):
        known = by_image.get(pair.image)
        if known is None or abs(pair.gain) > abs(known.gain):
            by_image[pair.image] = pair
    ordered = sorted(by_image.values(), key=lambda pair: -pair.gain)
    gains = [pair for pair in ordered if pair.gain > 0][:EACH_WAY]
    losses = [pair for pair in ordered[::-1] if pair.gain < 0][:EACH_WAY]
    return gains + losses


def _pairs(workspace: Workspace, place: tuple[str, str]) -> Iterator[Pair]:
    if workspace.matrix.compare is None:
        return
    first, second = workspace.matrix.compare
    cells = {(c.method, c.ablation, c.seed): c for c in workspace.matrix.cells if c.group[:2] == place}
    for (method, ablation, seed), cell in cells.items():
        other = cells.get((second, ablation, seed))
        if method != first or other is None:
            continue
        ours, theirs = _scores(cell, workspace.output), _scores(other, workspace.output)
        for image in sorted(set(ours) & set(theirs)):
            one, two = (c.folder(workspace.output) / "pictures" / f"{image}.png" for c in (cell, other))
            if one.is_file() and two.is_file():
                yield Pair(image, one, two, ours[image], theirs[image], seed)


def _scores(cell: Cell, output: Path) -> dict[str, float]:
    try:
        content = read_json_file(cell.folder(output) / "pictures" / SCORES_FILE)
    except (OSError, ValueError, InputError):
        return {}
    scores = content if isinstance(content, dict) else {}
    found = {name: number(value) for name, value in scores.items() if Path(name).name == name}
    return {name: value for name, value in found.items() if value is not None}


def data_url(path: Path) -> str:
    """Return a picture for use within a page, reduced to what a page shows; "" for one that cannot be read."""
    from PIL import Image

    stream = io.BytesIO()
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((WIDTH, WIDTH))
            small.save(stream, "JPEG", quality=85)
    except Exception:  # a decoder raises what it likes, and one picture is no reason to have no report
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
