"""The losses of Mask2Former: queries are matched to the masks of an image, then class, mask and dice losses are taken.

Importing this module imports transformers; import it inside functions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from hicl_d2.contrast.frame import uncompiled
from hicl_d2.d2.utils import comm

# Names of the losses in the original, in its order, and in transformers.
LOSSES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


class Matcher(Mask2FormerHungarianMatcher):
    """Transformers' matcher, with the same random points, costs and matches.

    All queries of an image are read at its points in one pass over them, and the costs of all images are brought to the
    host together.
    """

    @torch.no_grad()
    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Any,
        class_labels: Any,
    ) -> list[Any]:
        """Return for each image, as two tensors of numbers, which queries are matched with which of its masks.

        Args:
            masks_queries_logits: (B, Q, h, w).
            class_queries_logits: (B, Q, K + 1).
            mask_labels: per image (N, H, W), 0 or 1.
            class_labels: per image (N,).
        """
        images = zip(masks_queries_logits, class_queries_logits, mask_labels, class_labels, strict=True)
        costs = [self._costs(*image) for image in images]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        parts = flat.split([cost.numel() for cost in costs])
        found = [
            linear_sum_assignment(part.view(cost.shape)) for part, cost in zip(parts, costs, strict=True)
        ]
        return [(torch.as_tensor(queries), torch.as_tensor(masks)) for queries, masks in found]

    def _costs(self, masks: Tensor, classes: Tensor, mask_labels: Tensor, class_labels: Tensor) -> Tensor:
        """Return what each match would cost, (Q, N); what is not finite costs the most."""
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        predicted = sample_point(masks[None], points, align_corners=False)[0]
        wanted = sample_point(mask_labels.to(masks)[None], points, align_corners=False)[0]
        of_class = -classes.softmax(-1)[:, class_labels]
        of_mask = pair_wise_sigmoid_cross_entropy_loss(predicted, wanted)
        of_dice = pair_wise_dice_loss(predicted, wanted)
        cost = self.cost_mask * of_mask + self.cost_class * of_class + self.cost_dice * of_dice
        most = torch.finfo(cost.dtype).max
        return torch.nan_to_num(cost, nan=most, posinf=most, neginf=most)


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
        self.matcher = Matcher(class_weight, mask_weight, dice_weight, points)
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

    def sample_points_using_uncertainty(
        self,
        logits: Tensor,
        uncertainty_function: Callable[[Tensor], Tensor],
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> Tensor:
        """Draw points in 0 to 1 for each mask, a share of them the most uncertain of more: (N, num_points, 2).

        The points are transformers' in another order: those of the highest uncertainty are told apart, not sorted.

        Args:
            logits: (N, 1, h, w).
            uncertainty_function: takes logits (N, 1, points) to uncertainties of the same shape.
            num_points: for each mask.
            oversample_ratio: points that are looked at, over ``num_points``.
            importance_sample_ratio: share of ``num_points`` that is taken by uncertainty.
        """
        number, device = len(logits), logits.device
        points = torch.rand(number, int(num_points * oversample_ratio), 2, device=device)
        uncertainty = uncertainty_function(sample_point(logits, points, align_corners=False))[:, 0]
        chosen = _largest(uncertainty, int(importance_sample_ratio * num_points))
        left = num_points - chosen.shape[1]
        points = points.gather(1, chosen[..., None].expand(-1, -1, 2))
        return torch.cat([points, torch.rand(number, left, 2, device=device)], 1) if left else points

    def get_num_masks(self, class_labels: Any, device: torch.device) -> Tensor:
        """Return the mean number of masks per process, at least 1, by which every process divides its losses."""
        count = torch.tensor(float(sum(map(len, class_labels))), device=device)
        if comm.get_world_size() > 1:
            dist.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest values (N, P) of each row are, in no order: (N, count) int64."""
    if values.device.type != "cpu" or count == 0:
        return values.topk(count, dim=1, sorted=False).indices
    # A tenth of the time of torch.topk.
    return torch.from_numpy(np.argpartition(values.numpy(), -count, axis=1)[:, -count:])


def _in_float32(predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "masks_queries_logits": predictions["pred_masks"].float(),
        "class_queries_logits": predictions["pred_logits"].float(),
    }
