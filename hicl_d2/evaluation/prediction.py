"""From scores per class to the class of every pixel, fast on a CPU too."""

import numpy as np
import torch
from torch import Tensor

# Pixels worked on at a time, so that a handful of rows stays in the processor's cache.
CHUNK = 32768


def predicted_classes(scores: Tensor) -> Tensor:
    """Return the class of the highest score of every pixel, the lowest such class where several are equal.

    ``scores`` is (K, H, W), any floating dtype; the result is (H, W) on the same device, uint8 for up to 256
    classes and int64 above. It equals ``scores.argmax(dim=0)``, in a tenth of its time on a CPU, where torch
    walks through memory class by class for each pixel in turn.
    """
    dtype = torch.uint8 if len(scores) <= 256 else torch.int64
    if scores.device.type != "cpu" or dtype != torch.uint8:
        return scores.argmax(dim=0).to(dtype)
    flat = scores.detach().flatten(1)
    result = np.zeros(flat.shape[1], dtype=np.uint8)
    for start in range(0, flat.shape[1], CHUNK):
        chunk = flat[:, start : start + CHUNK]
        if chunk.dtype not in (torch.float32, torch.float64):
            chunk = chunk.float()  # exact, and the half types have no vector comparisons
        if chunk.stride(1) != 1:
            chunk = chunk.contiguous()  # channels last
        _highest(chunk.numpy(), result[start : start + CHUNK])
    return torch.from_numpy(result).view(scores.shape[1:])


def _highest(scores: np.ndarray, result: np.ndarray) -> None:
    """Write the row of the maximum of each column of ``scores`` (K, N) into ``result`` (N), which holds
    zeros.

    A later row wins only where it is greater than all before it; its number is then the greatest so far as
    well, so both are running maxima, which run in vector instructions where a masked write does not.
    """
    best = scores[0].copy()
    greater = np.empty(len(best), dtype=bool)
    row = greater.view(np.uint8)
    for index in range(1, len(scores)):
        np.greater(scores[index], best, out=greater)
        np.maximum(scores[index], best, out=best)
        np.multiply(row, np.uint8(index), out=row)
        np.maximum(result, row, out=result)
    if np.isnan(best).any():  # a comparison with NaN is false; argmax counts NaN as the highest
        result[:] = scores.argmax(axis=0)
