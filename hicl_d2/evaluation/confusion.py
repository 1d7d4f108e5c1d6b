"""A confusion matrix that streams: it grows with the classes, never with the images."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from hicl_d2.command.errors import InputError, counted

# Label maps of one byte are counted value by value, without a pass that looks for the ignored ones.
BYTE_VALUES = 256


class ConfusionMatrix:
    """Count pixels by true and by predicted class, and turn the counts into scores.

    ``counts`` is (K, K), int64: rows are the true classes, columns the predicted ones. It lives where the
    first predictions do. Pixels whose truth is ``ignore_value`` are not counted.

    The scores are those of the PASCAL VOC and Cityscapes benchmarks: one matrix over the whole split, then a
    score per class, then the mean over the classes that occur in the truth. They are fractions, nan where
    nothing was counted.
    """

    def __init__(self, num_classes: int, ignore_value: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.counts = torch.zeros((num_classes, num_classes), dtype=torch.int64)

    def reset(self) -> None:
        """Forget all counts."""
        self.counts.zero_()

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add one label map or a batch of them.

        Both are (H, W) or (B, H, W), of any integer dtype; ``truth`` may be on another device. Raises
        InputError, and counts nothing, if ``truth`` holds a value that is neither a class nor the ignored
        one.
        """
        if prediction.shape != truth.shape:
            shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
            raise ValueError(f"prediction and truth must have the same shape, not {shapes}")
        if prediction.is_floating_point():
            raise ValueError(f"prediction must hold classes (integers), not scores ({prediction.dtype})")
        if prediction.numel() == 0:
            return
        self._check_prediction(prediction)
        truth = truth.to(prediction.device)
        if truth.dtype == torch.uint8:
            counts = self._count_bytes(prediction, truth)
        else:
            counts = self._count_valid(prediction, truth)
        self.counts = self.counts.to(prediction.device).add_(counts)

    def _check_prediction(self, prediction: Tensor) -> None:
        low, high = (int(value) for value in prediction.aminmax())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise ValueError(f"predicted class {wrong} is outside 0..{self.num_classes - 1}")

    def _count_bytes(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Count all 256 values; what is no class is dropped if ignored and refused otherwise."""
        table = self._histogram(prediction, truth, max(BYTE_VALUES, self.num_classes))
        pixels = table.sum(dim=1)
        if 0 <= self.ignore_value < len(pixels):
            pixels[self.ignore_value] = 0
            table[self.ignore_value] = 0
        wrong = pixels[self.num_classes :].nonzero()
        if len(wrong):
            value = self.num_classes + int(wrong[0])
            raise self._out_of_range(value, int(pixels[value]))
        return table[: self.num_classes]

    def _count_valid(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Count the pixels that are not ignored, whatever values the labels have."""
        valid = truth != self.ignore_value
        prediction, truth = prediction[valid], truth[valid]
        wrong = truth[(truth < 0) | (truth >= self.num_classes)]
        if len(wrong):
            raise self._out_of_range(int(wrong[0]), int((wrong == wrong[0]).sum()))
        return self._histogram(prediction, truth, self.num_classes)

    def _histogram(self, prediction: Tensor, truth: Tensor, rows: int) -> Tensor:
        """Return how often each pair occurs, (rows, K), int64."""
        cells = rows * self.num_classes
        dtype = torch.int32 if cells < 2**31 else torch.int64
        index = truth.to(dtype).mul_(self.num_classes).add_(prediction)
        return torch.bincount(index.flatten(), minlength=cells).view(rows, self.num_classes)

    def _out_of_range(self, value: int, pixels: int) -> InputError:
        return InputError(
            f"label value {value} ({counted(pixels, 'pixel')}) is none of the classes 0..{self.num_classes - 1} "
            f"and not the ignored value {self.ignore_value}; correct the label map or the list of classes"
        )

    def reduce(self) -> "ConfusionMatrix":
        """Return the matrix of all processes together; every process must call it and keeps its own."""
        total = ConfusionMatrix(self.num_classes, self.ignore_value)
        total.counts = summed_over_processes(self.counts)
        return total

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return hits, true pixels and predicted pixels of each class, (K,), float64, on the CPU."""
        counts = self.counts.cpu().double()
        return counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)

    def iou(self) -> Tensor:
        """Return intersection over union of each class, (K,), float64; nan for a class that does not occur in
        the truth.
        """
        hits, true, predicted = self._parts()
        return torch.where(true > 0, hits / (true + predicted - hits), math.nan)

    def accuracy(self) -> Tensor:
        """Return the share of each class's pixels that were found, (K,), float64; nan without any."""
        hits, true, _ = self._parts()
        return torch.where(true > 0, hits / true, math.nan)

    def mean_iou(self) -> float:
        """Return the mean of :meth:`iou` over the classes that occur in the truth."""
        return float(self.iou().nanmean())

    def mean_accuracy(self) -> float:
        """Return the mean of :meth:`accuracy` over the classes that occur in the truth."""
        return float(self.accuracy().nanmean())

    def frequency_weighted_iou(self) -> float:
        """Return the mean of :meth:`iou`, each class weighted with its share of the true pixels."""
        _, true, _ = self._parts()
        if not true.sum():
            return math.nan
        return float((self.iou() * true / true.sum()).nansum())

    def pixel_accuracy(self) -> float:
        """Return the share of all counted pixels that were predicted right."""
        hits, true, _ = self._parts()
        return float(hits.sum() / true.sum())


def summed_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of ``counts`` over all processes, each of which must call this; the own stay as they are."""
    total = counts.clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(total)
    return total
