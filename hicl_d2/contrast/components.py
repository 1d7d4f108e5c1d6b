"""Components: the pooled windows that anchors are contrasted with, and how rows are taken out of a feature map."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast.levels import Level
from hicl_d2.contrast.processes import gather_rows, is_distributed

__all__ = ["Components", "gather_cells", "gather_windows"]


@dataclass(frozen=True)
class Components:
    """Hold embedded components: M of this step, then R that a bank recalls.

    Attributes:
        rows: (M, D) embeddings of length one.
        classes: (M + R,) int64; -1 for an empty place.
        levels: (M + R,) int64, index of the level; 0 for an empty place.
        cells: (M + R,) int64, the cell of this process's batch, as a position in the flattened (B, h, w), that is the
            whole window; -1 for other windows. None if no component is such a window.
        remembered: (R, D) embeddings of length one, without gradient; None for R = 0.
        runs: parts of the components, one after the other, that are sorted by class. Of each the class (m,) int64 of
            every place, ascending, with -1 allowed at the end. A place of a bank counts as of its ring's class even
            while it is empty. None if ``classes`` is one such run.
    """

    rows: Tensor
    classes: Tensor
    levels: Tensor
    cells: Tensor | None = None
    remembered: Tensor | None = None
    runs: tuple[Tensor, ...] | None = None

    @property
    def all_rows(self) -> Tensor:
        """Return the embeddings of all components, (M + R, D)."""
        return self.rows if self.remembered is None else torch.cat([self.rows, self.remembered])

    @property
    def sorted_runs(self) -> tuple[Tensor, ...]:
        """Return ``runs``, or ``classes`` as the only one."""
        return (self.classes,) if self.runs is None else self.runs

    def gather(self) -> "Components":
        """Return the components of all processes in rank order, with gradient; M must be the same on every process.

        Only this process's windows keep their cells: those of others are no anchor's own window here.
        """
        if not is_distributed():
            return self
        M, first = len(self.rows), dist.get_rank() * len(self.rows)
        classes = gather_rows(self.classes)
        cells = None
        if self.cells is not None:
            cells = torch.full_like(classes, -1)
            cells[first : first + M] = self.cells
        return Components(
            gather_rows(self.rows), classes, gather_rows(self.levels), cells, runs=classes.split(M)
        )

    def join(self, recalled: "Components") -> "Components":
        """Return these components followed by those that a bank recalls, which get no gradient."""
        return Components(
            self.rows,
            torch.cat([self.classes, recalled.classes]),
            torch.cat([self.levels, recalled.levels]),
            None if self.cells is None else F.pad(self.cells, (0, len(recalled.rows)), value=-1),
            recalled.rows.detach().to(self.rows.dtype),
            self.sorted_runs + recalled.sorted_runs,
        )


def gather_cells(features: Tensor, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Take cells out of features (B, C, h, w): (N, C) in ``dtype``, with gradient.

    Args:
        features: any float type.
        index: (N,) int64, positions in the flattened (B, h, w); repeats are allowed.
        dtype: float32 or float64.
    """
    return gather_windows(features, index, index[:0], (), dtype)


def gather_windows(
    features: Tensor,
    cells: Tensor,
    windows: Tensor,
    levels: Sequence[Level],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Take cells and means over windows out of features (B, C, h, w): (A + M, C) in ``dtype``, with gradient.

    Args:
        features: any float type.
        cells: (A,) int64, positions in the flattened (B, h, w).
        windows: (M,) int64, positions in the windows of all levels: level after level, each a flattened
            (B, rows, columns).
        levels: in ascending order of their windows.
        dtype: float32 or float64.
    """
    features = features.to(dtype)
    pooled = [
        F.avg_pool2d(features, level.window, level.step)
        for level in levels
        if 0 not in level.extent((features.shape[2], features.shape[3]))
    ]
    rows = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in (features, *pooled)]
    components = torch.cat(rows[1:]) if pooled else rows[0][:0]
    return torch.cat([rows[0][cells], components[windows] if pooled else components])
