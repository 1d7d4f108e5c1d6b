"""The losses of Mask2Former: queries are matched to the masks of an image, then class, mask and dice losses are taken.

Importing this module imports transformers; import it inside functions.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    dice_loss,
    sample_point,
    sigmoid_cross_entropy_loss,
)

from hicl_d2.contrast.frame import uncompiled
from hicl_d2.d2.utils import comm

# Names of the losses in the original, in its order, and in transformers.
LOSSES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


class Layer(NamedTuple):
    """What one layer of the decoder predicts for B images with Q queries, in float32."""

    masks: Tensor  # logits (B, Q, h, w)
    classes: Tensor  # logits (B, Q, K + 1)


class Points(NamedTuple):
    """The random points of one layer, (x, y) in 0 to 1, in the order in which transformers draws them."""

    matching: Tensor  # (B, P, 2): of each image, where masks are compared to match them
    candidates: Tensor  # (M, P * oversample ratio, 2): of each match, of which the most uncertain are taken
    others: Tensor  # (M, the rest of P, 2): of each match, taken as they are


class Matcher(Mask2FormerHungarianMatcher):
    """Transformers' matcher, with the same costs and matches for the same points.

    The costs of all layers and images are brought to the host together, and so are the matches back to the device.
    """

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
        device = masks_queries_logits.device
        points = torch.rand(len(masks_queries_logits), self.num_points, 2, device=device)
        layer = Layer(masks_queries_logits, class_queries_logits)
        return self.match([layer], [points], mask_labels, class_labels)[0]

    @torch.no_grad()
    def match(
        self,
        layers: Sequence[Layer],
        points: Sequence[Tensor],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Return for each layer and image, as two tensors of numbers, which queries are matched with which masks.

        Args:
            layers: the predictions of each layer.
            points: per layer (B, P, 2), where masks are compared.
            masks: per image (N, H, W), 0 or 1.
            labels: per image (N,).
        """
        costs = torch.stack(
            [self._costs(layer, drawn, masks, labels) for layer, drawn in zip(layers, points, strict=True)]
        )
        counts = [len(ids) for ids in labels] * len(layers)
        found = [
            linear_sum_assignment(cost[:, :count])
            for cost, count in zip(costs.cpu().flatten(0, 1), counts, strict=True)
        ]
        pairs = torch.from_numpy(np.concatenate([np.stack(pair) for pair in found], axis=1))
        pairs = pairs.to(costs.device, non_blocking=True)
        queries, targets = (part.split([len(pair[0]) for pair in found]) for part in pairs)
        matches = list(zip(queries, targets, strict=True))
        return [matches[start : start + len(labels)] for start in range(0, len(matches), len(labels))]

    def _costs(
        self, layer: Layer, points: Tensor, masks: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Tensor:
        """Return what each match would cost, (B, Q, N) for the most masks of an image; what is not finite costs the most."""
        logits = sample_point(layer.masks, points, align_corners=False)
        wanted = pad_sequence(
            [
                sample_point(mask.to(logits)[None], drawn[None], align_corners=False)[0]
                for mask, drawn in zip(masks, points, strict=True)
            ],
            batch_first=True,
        )
        ids = pad_sequence(list(labels), batch_first=True)[:, None].expand(-1, logits.shape[1], -1)
        of_class = -layer.classes.softmax(-1).gather(2, ids)
        probabilities, targets = logits.sigmoid(), wanted.mT
        # Cross entropy is softplus(x) - x y for the logit x and the target y.
        of_mask = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets) / self.num_points
        sizes = probabilities.sum(-1, keepdim=True) + wanted.sum(-1)[:, None]
        of_dice = 1 - (2 * (probabilities @ targets) + 1) / (sizes + 1)
        cost = self.cost_mask * of_mask + self.cost_class * of_class + self.cost_dice * of_dice
        most = torch.finfo(cost.dtype).max
        return torch.nan_to_num(cost, nan=most, posinf=most, neginf=most)


class SetCriterion(Mask2FormerLoss):
    """Transformers' loss in float32, weighted and named as in the original; the number of masks is averaged over processes.

    The random points are drawn in transformers' order, those of all layers before the first match: some 330 KB for each
    mask and layer with the 12,544 points of the recipes.
    """

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
        self.matcher: Matcher = Matcher(class_weight, mask_weight, dice_weight, points)
        self.deep_supervision = deep_supervision

    @uncompiled  # matching leaves torch, and the number of masks differs from step to step
    def losses(
        self, predictions: Mapping[str, Any], labels: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return the weighted losses: "loss_ce", "loss_mask", "loss_dice", and with ``_i`` those of earlier layers.

        ``predictions`` are the decoder's; per image there are class ids ``labels`` (N,) and ``masks`` (N, H, W), 0 or 1.
        """
        masks = [mask.float() for mask in masks]
        earlier = predictions["aux_outputs"] if self.deep_supervision else ()
        layers = [_in_float32(each) for each in (predictions, *earlier)]
        with torch.autocast(layers[0].masks.device.type, enabled=False):
            found = self._weighted(layers, labels, masks)
        ends = ["", *(f"_{index}" for index in range(len(layers) - 1))]
        return {
            f"{name}{end}": loss
            for end, losses in zip(ends, found, strict=True)
            for name, loss in losses.items()
        }

    def _weighted(
        self, layers: Sequence[Layer], labels: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Return the losses of each layer; the host waits once, for the costs of all matches."""
        points = [self.draw_points(layer.masks, labels) for layer in layers]
        matches: Any = self.matcher.match(layers, [each.matching for each in points], masks, labels)
        count: Any = self.get_num_masks(labels, layers[0].masks.device)
        every_mask = torch.cat(list(masks))[:, None]
        firsts = list(itertools.accumulate(map(len, labels), initial=0))
        losses = []
        for layer, pairs in zip(layers, matches, strict=True):
            wanted = torch.cat([first + target for first, (_, target) in zip(firsts, pairs, strict=False)])
            logits, target = self._at_points(
                layer.masks[self._get_predictions_permutation_indices(pairs)][:, None],
                every_mask[wanted],
                points.pop(0),
            )
            found = {
                **self.loss_labels(layer.classes, list(labels), pairs),
                "loss_mask": sigmoid_cross_entropy_loss(logits, target, count),
                "loss_dice": dice_loss(logits, target, count),
            }
            losses.append({ours: found[theirs] * self.weight_dict[ours] for ours, theirs in LOSSES.items()})
        return losses

    def draw_points(self, masks: Tensor, labels: Sequence[Tensor]) -> Points:
        """Return the points of a layer with mask logits (B, Q, h, w) for images with class ids ``labels`` (N,)."""
        images, queries = masks.shape[:2]
        matched = sum(min(queries, len(ids)) for ids in labels)
        candidates = int(self.num_points * self.oversample_ratio)
        others = self.num_points - self._uncertain
        counts = ((images, self.num_points), (matched, candidates), (matched, others))
        return Points(*(torch.rand(*count, 2, device=masks.device) for count in counts))

    @property
    def _uncertain(self) -> int:
        return int(self.importance_sample_ratio * self.num_points)

    def _at_points(self, logits: Tensor, target: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """Return ``logits`` (M, 1, h, w) and masks ``target`` (M, 1, H, W) at the points of each match, (M, P) each."""
        with torch.no_grad():
            uncertainty = -sample_point(logits, points.candidates, align_corners=False)[:, 0].abs()
            chosen = _largest(uncertainty, self._uncertain)
            # A point as one complex number: gathered by two numbers it takes several times as long.
            uncertain = torch.view_as_real(torch.view_as_complex(points.candidates).gather(1, chosen))
            where = torch.cat([uncertain, points.others], 1)
            wanted = sample_point(target, where, align_corners=False)[:, 0]
        return sample_point(logits, where, align_corners=False)[:, 0], wanted

    def get_num_masks(self, class_labels: Any, device: torch.device) -> Tensor:
        """Return the mean number of masks per process, at least 1, by which every process divides its losses."""
        count = torch.full((), float(sum(map(len, class_labels))), device=device)
        if comm.get_world_size() > 1:
            dist.all_reduce(count)
        return (count / comm.get_world_size()).clamp(min=1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest values (N, P) of each row are, in no order: (N, count) int64."""
    if values.device.type != "cpu" or count == 0:
        return values.topk(count, dim=1, sorted=False).indices
    # A tenth of the time of torch.topk.
    return torch.from_numpy(np.argpartition(values.numpy(), -count, axis=1)[:, -count:])


def _in_float32(predictions: Mapping[str, Tensor]) -> Layer:
    return Layer(predictions["pred_masks"].float(), predictions["pred_logits"].float())
