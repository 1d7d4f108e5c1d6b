"""How well boundaries are found: boundary IoU and boundary F over the whole split."""

import math

import numpy as np
import torch
from torch import Tensor

# What is counted of each class, one row each.
HIT_BAND, TRUE_BAND, PREDICTED_BAND = 0, 1, 2
PREDICTED_HIT, PREDICTED_LINE, TRUE_HIT, TRUE_LINE = 3, 4, 5, 6
ROWS = 7


class BoundaryCounts:
    """Count, class by class, the pixels near boundaries that truth and prediction share.

    Boundary IoU: of each class only the pixels at most ``d`` away from another class or from the image's frame
    (by the larger of the two coordinate differences) are compared, where d is ``share`` of the image's
    diagonal, 1 pixel at least. Source: Cheng et al., "Boundary IoU", CVPR 2021, where the share is 0.02.

    Boundary F: the harmonic mean of the share of the predicted contour of a class within ``d`` (Euclidean) of its
    true contour, and of the share of the true contour near the predicted one. A contour is made of a class's
    pixels beside another class; the frame is none. Source: Csurka et al., "What is a good evaluation measure
    for semantic segmentation?", BMVC 2013 (share 0.0075).

    Both sources score image by image or mask by mask; here the counts of the split are added up first, as for
    IoU. Ignored pixels are left out and make no boundary.
    """

    def __init__(self, num_classes: int, ignore_value: int, share: float) -> None:
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.share = share
        self.counts = torch.zeros((ROWS, num_classes), dtype=torch.int64)

    def reset(self) -> None:
        """Forget all counts."""
        self.counts.zero_()

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Add one image: label maps (H, W) of integers; ``truth`` holds classes and the ignored value alone."""
        ignored = truth == self.ignore_value
        height, width = truth.shape
        distance = max(1, round(self.share * math.hypot(height, width)))
        true_band, predicted_band = (
            _band(labels, ignored, distance, self.num_classes) for labels in (truth, prediction)
        )
        both = true_band & predicted_band & (truth == prediction)
        true_line, predicted_line = (_contour(labels, ignored) for labels in (truth, prediction))
        near_truth = _matched(prediction, predicted_line, truth, true_line, distance)
        near_prediction = _matched(truth, true_line, prediction, predicted_line, distance)
        counted = [
            truth[both],
            truth[true_band],
            prediction[predicted_band],
            prediction[predicted_line][near_truth],
            prediction[predicted_line],
            truth[true_line][near_prediction],
            truth[true_line],
        ]
        rows = [np.bincount(classes, minlength=self.num_classes) for classes in counted]
        self.counts += torch.from_numpy(np.stack(rows))

    def scores(self, counts: Tensor) -> dict[str, Tensor]:
        """Return "BoundaryIoU" and "BoundaryF" of each class, (K,), 0 to 1, from counts over all processes; nan
        for a class without a true boundary.
        """
        rows = counts.double()
        union = rows[TRUE_BAND] + rows[PREDICTED_BAND] - rows[HIT_BAND]
        iou = torch.where(rows[TRUE_BAND] > 0, rows[HIT_BAND] / union, math.nan)
        precision = rows[PREDICTED_HIT] / rows[PREDICTED_LINE].clamp(min=1)
        recall = rows[TRUE_HIT] / rows[TRUE_LINE].clamp(min=1)
        f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return {"BoundaryIoU": iou, "BoundaryF": torch.where(rows[TRUE_LINE] > 0, f, math.nan)}


def _band(labels: np.ndarray, ignored: np.ndarray, distance: int, num_classes: int) -> np.ndarray:
    """Return which pixels, (H, W), lie within ``distance`` of another class or of the frame.

    One running minimum and one running maximum serve all classes: they differ where two classes are near.
    """
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    dtype = np.uint8 if num_classes < 256 else np.int32
    size = 2 * distance + 1
    lowest = np.where(ignored, num_classes, labels).astype(dtype)
    highest = np.where(ignored, 0, labels).astype(dtype)
    for axis in (0, 1):
        lowest = minimum_filter1d(lowest, size, axis=axis, mode="nearest")
        highest = maximum_filter1d(highest, size, axis=axis, mode="nearest")
    band = lowest != highest
    band[:distance] = band[-distance:] = True
    band[:, :distance] = band[:, -distance:] = True
    return band & ~ignored


def _contour(labels: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Return which pixels, (H, W), have another class to the left, right, above or below."""
    contour = np.zeros(labels.shape, dtype=bool)
    for one, other in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differ = (labels[one] != labels[other]) & ~ignored[one] & ~ignored[other]
        contour[one] |= differ
        contour[other] |= differ
    return contour


def _matched(
    labels: np.ndarray, line: np.ndarray, other_labels: np.ndarray, other_line: np.ndarray, distance: int
) -> np.ndarray:
    """Return which pixels of ``line``, in the order of its truth values, have a pixel of their class in
    ``other_line`` within ``distance``.
    """
    from scipy.spatial import cKDTree

    points, others = (_points(*pair) for pair in ((labels, line), (other_labels, other_line)))
    if not len(points) or not len(others):
        return np.zeros(len(points), dtype=bool)
    nearest, _ = cKDTree(others).query(points, distance_upper_bound=distance + 1e-6)
    return np.isfinite(nearest)


def _points(labels: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return row, column and class of the pixels of ``line``, the classes far apart."""
    rows, columns = line.nonzero()
    return np.stack([rows, columns, labels[line].astype(np.float64) * 4 * sum(line.shape)], axis=1)
