"""Accuracy by the size of what is to be found."""

import math

import numpy as np
import torch
from torch import Tensor

# Areas in pixels at which the sizes begin, as in COCO's detection scores.
SIZES = {"small": 0, "medium": 32**2, "large": 96**2}


class ObjectSizeCounts:
    """Count the pixels found in small, medium and large objects of each class.

    An object is a region of one class in the truth whose pixels hang together over their sides. ``counts`` is
    (3, K, 2), int64: pixels found and pixels in all, by size and class.
    """

    def __init__(self, num_classes: int, ignore_value: int) -> None:
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.counts = torch.zeros((len(SIZES), num_classes, 2), dtype=torch.int64)

    def reset(self) -> None:
        """Forget all counts."""
        self.counts.zero_()

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Add one image: label maps (H, W) of integers; ``truth`` holds classes and the ignored value alone."""
        if truth.size == 0:
            return
        starts, region = runs_and_regions(truth)
        lengths = np.diff(starts, append=truth.size)
        classes = truth.ravel()[starts]
        area = np.bincount(region, weights=lengths)[region]
        size = np.searchsorted(list(SIZES.values()), area, side="right") - 1
        found = np.add.reduceat((prediction == truth).ravel().astype(np.int64), starts)
        valid = classes != self.ignore_value
        cells = (size * self.num_classes + classes.astype(np.int64))[valid]
        count = len(SIZES) * self.num_classes
        sums = [np.bincount(cells, weights=part[valid], minlength=count) for part in (found, lengths)]
        self.counts += torch.from_numpy(np.stack(sums, axis=-1).astype(np.int64)).view(self.counts.shape)

    def scores(self, counts: Tensor) -> dict[str, Tensor]:
        """Return "ACC_small", "ACC_medium" and "ACC_large" of each class, (K,), 0 to 1; nan without any."""
        found, total = counts.double().unbind(dim=-1)
        accuracy = torch.where(total > 0, found / total, math.nan)
        return {f"ACC_{name}": accuracy[index] for index, name in enumerate(SIZES)}


def runs_and_regions(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the horizontal runs of equal labels begin in the flattened map (H, W), and the region that
    each run belongs to.

    A region is a connected set of runs: runs are few where pixels are many, so that the graph is small.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    begins = np.ones(labels.shape, dtype=bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    run = np.cumsum(begins.ravel(), dtype=np.int32).reshape(labels.shape) - 1
    # Two runs that touch do so first where one of them begins.
    touch = (labels[1:] == labels[:-1]) & (begins[1:] | begins[:-1])
    above, below = run[:-1][touch], run[1:][touch]
    starts = begins.ravel().nonzero()[0]
    graph = coo_array((np.ones(len(above), dtype=bool), (above, below)), shape=(len(starts), len(starts)))
    return starts, connected_components(graph, directed=False)[1]
