"""The fast form of the method: functions of the same names and signatures as their plain twins beside this folder.

Each one is held to its twin by the same tests. `hicl_d2.contrast.operations` chooses between the two forms.
"""

from hicl_d2.contrast.fused.candidates import count_labels, sum_windows
from hicl_d2.contrast.fused.embedding import embed
from hicl_d2.contrast.fused.loss import contrast
from hicl_d2.contrast.fused.pooling import gather_cells, gather_windows
from hicl_d2.contrast.fused.pruning import ClassScores

__all__ = [
    "ClassScores",
    "contrast",
    "count_labels",
    "embed",
    "gather_cells",
    "gather_windows",
    "sum_windows",
]
