"""The memories of the peers: a `ComponentBank` with sizes of its own, whose levels are kinds of rows."""

import torch
from torch import Tensor

from hicl_d2.contrast.bank import ComponentBank
from hicl_d2.contrast.components import Components

__all__ = ["make_memory", "recall", "remember"]

# Where no size is given, the entries of one kind of ring over all classes, and the least per ring: the work of a step must
# not grow with the number of classes.
_DEFAULT_TOTAL, _DEFAULT_LEAST = 4096, 8


def make_memory(num_classes: int, kinds: int, dim: int, size: int = 0) -> ComponentBank:
    """Make a memory of ``kinds`` rings per class, ``size`` entries each; size 0 means 4,096 / K, at least 8."""
    if size < 0:
        raise ValueError(f"bank_size must be at least 1, or 0 for its default, not {size}")
    return ComponentBank(num_classes, kinds, size or max(_DEFAULT_LEAST, _DEFAULT_TOTAL // num_classes), dim)


def recall(memory: ComponentBank) -> tuple[Tensor, Tensor]:
    """Return all places (R, D) and the class of each (R,) int64, -1 where nothing is stored yet."""
    recalled = memory.recall()
    return recalled.rows, recalled.classes


@torch.no_grad()
def remember(memory: ComponentBank, kinds: list[tuple[Tensor, Tensor]]) -> None:
    """Store, for each kind of ring, rows (N, D) by their classes (N,), -1 for none."""
    rows = torch.cat([rows for rows, _ in kinds])
    classes = torch.cat([classes for _, classes in kinds])
    levels = torch.cat([torch.full_like(classes, kind) for kind, (_, classes) in enumerate(kinds)])
    memory.remember(Components(rows, classes, levels))
