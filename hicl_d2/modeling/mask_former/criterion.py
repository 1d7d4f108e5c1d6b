"""The losses of Mask2Former: queries are matched to the masks of an image, then class, mask and dice losses are taken.

Importing this module imports transformers; import it inside functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from hicl_d2.contrast.frame import uncompiled
from hicl_d2.d2.utils import comm

# Names of the losses in the original, in its order, and in transformers.
LOSSES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


class SetCriterion(Mask2FormerLoss):
    """Transformers' loss in float32, weighted and named as in the original; the number of masks is averaged over processes."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        deep_supervision: bool,
    ) -> None:
        settings: dict[str, Any] = {
            "num_labels": num_classes,
            "class_weight": class_weight,
            "mask_weight": mask_weight,
            "dice_weight": dice_weight,
            "no_object_weight": no_object_weight,
            "train_num_points": points,
            "oversample_ratio": oversample_ratio,
            "importance_sample_ratio": importance_sample_ratio,
        }
        weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        super().__init__(Mask2FormerConfig(**settings), weights)
        self.deep_supervision = deep_supervision

    @uncompiled  # matching leaves torch, and the number of masks differs from step to step
    def losses(
        self, predictions: Mapping[str, Any], labels: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return the weighted losses: "loss_ce", "loss_mask", "loss_dice", and with ``_i`` those of earlier layers.

        ``predictions`` are the decoder's; per image there are class ids ``labels`` (N,) and ``masks`` (N, H, W), 0 or 1.
        """
        masks = [mask.float() for mask in masks]
        last = _in_float32(predictions)
        earlier = (
            [_in_float32(each) for each in predictions["aux_outputs"]] if self.deep_supervision else None
        )
        with torch.autocast(last["masks_queries_logits"].device.type, enabled=False):
            found = self(**last, mask_labels=masks, class_labels=labels, auxiliary_predictions=earlier)
        ends = ["", *(f"_{index}" for index in range(len(earlier or ())))]
        return {
            f"{ours}{end}": found[f"{theirs}{end}"] * self.weight_dict[ours]
            for end in ends
            for ours, theirs in LOSSES.items()
        }

    def get_num_masks(self, class_labels: Any, device: torch.device) -> Tensor:
        """Return the mean number of masks per process, at least 1, by which every process divides its losses."""
        count = torch.tensor(float(sum(map(len, class_labels))), device=device)
        if comm.get_world_size() > 1:
            dist.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _in_float32(predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "masks_queries_logits": predictions["pred_masks"].float(),
        "class_queries_logits": predictions["pred_logits"].float(),
    }
