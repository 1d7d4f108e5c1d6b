"""Resizing predictions to the size of the image."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["sem_seg_postprocess"]


def sem_seg_postprocess(
    result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> Tensor:
    """Crop logits (K, H, W) to ``img_size``, without the padding, and resize them to the output size."""
    logits = result[None, :, : img_size[0], : img_size[1]]
    size = (output_height, output_width)
    if logits.shape[-2:] == size:  # resizing to the same size changes nothing
        return logits[0].contiguous()
    # Pixel by pixel in memory (channels_last) few classes are resized slowly, and copied twice.
    return F.interpolate(logits.contiguous(), size=size, mode="bilinear", align_corners=False)[0]
