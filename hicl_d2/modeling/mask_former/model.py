"""The meta-architecture ``MaskFormer``: Mask2Former for semantic segmentation behind any backbone."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.modeling import Backbone, SemanticSegmentor, build_backbone, sem_seg_postprocess
from hicl_d2.d2.structures import ImageList
from hicl_d2.modeling.mask_former.head import MaskFormerHead
from hicl_d2.modeling.predictions import semantic_scores


class MaskFormer(SemanticSegmentor):
    """A segmentor whose head predicts masks and classes of queries; its losses match queries to the masks of an image.

    Images are padded to a multiple of ``size_divisibility`` (below 0: the backbone's). With
    ``resize_masks`` the masks are resized to the output and then summed over queries, which takes more memory and gives
    slightly other scores than resizing the sum.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        size_divisibility: int,
        resize_masks: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(
            backbone=backbone, sem_seg_head=sem_seg_head, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.criterion: Any = criterion
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.resize_masks = resize_masks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts and return the arguments of the constructor."""
        from hicl_d2.modeling.mask_former.criterion import SetCriterion

        settings = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        # Not by its registered name, which may be the original project's head: that is called with other arguments.
        sem_seg_head = MaskFormerHead(cfg, backbone.output_shape())
        criterion = SetCriterion(
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            class_weight=settings.CLASS_WEIGHT,
            mask_weight=settings.MASK_WEIGHT,
            dice_weight=settings.DICE_WEIGHT,
            no_object_weight=settings.NO_OBJECT_WEIGHT,
            points=settings.TRAIN_NUM_POINTS,
            oversample_ratio=settings.OVERSAMPLE_RATIO,
            importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
            deep_supervision=settings.DEEP_SUPERVISION,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": criterion,
            "size_divisibility": settings.SIZE_DIVISIBILITY,
            "resize_masks": settings.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the weighted losses by name in training, else one dictionary per image.

        Each input holds "image" (C, H, W) with values 0..255, in training "sem_seg" (H, W) with class ids and the
        head's ignore value, and in testing the "height" and "width" of the output (default: the image's). Each output
        holds "sem_seg", scores (K, height, width): per class the sum over queries of class probability times mask.
        """
        images = ImageList.from_tensors(
            [
                (entry["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
                for entry in batched_inputs
            ],
            self.size_divisibility,
        )
        predictions = self.sem_seg_head(self.backbone(images.tensor))
        if self.training:
            return self.criterion.losses(predictions, *self.targets(batched_inputs))
        padded_size = images.tensor.shape[-2:]
        masks = F.interpolate(
            predictions["pred_masks"], size=padded_size, mode="bilinear", align_corners=False
        )
        outputs = []
        for classes, mask, entry, size in zip(
            predictions["pred_logits"], masks, batched_inputs, images.image_sizes, strict=True
        ):
            target = (entry.get("height", size[0]), entry.get("width", size[1]))
            outputs.append({"sem_seg": self._scores_of_image(classes, mask, size, target)})
        return outputs

    def targets(self, batched_inputs: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the class ids (N,) present in each image and their masks (N, H, W), padded to one size."""
        ignore_value: Any = self.sem_seg_head.ignore_value
        # Of the maps as they are given, in the host's memory: there it need not wait to know how many classes there are.
        present = [_values(entry["sem_seg"]) for entry in batched_inputs]
        labels = [ids[ids != ignore_value].to(self.device, non_blocking=True) for ids in present]
        maps = [entry["sem_seg"].to(self.device, non_blocking=True) for entry in batched_inputs]
        padded = ImageList.from_tensors(maps, self.size_divisibility, ignore_value).tensor
        masks = [(area == ids[:, None, None]).float() for area, ids in zip(padded, labels, strict=True)]
        return labels, masks

    def _scores_of_image(
        self, classes: Tensor, masks: Tensor, size: tuple[int, int], target: tuple[int, int]
    ) -> Tensor:
        if self.resize_masks:
            return semantic_scores(classes, sem_seg_postprocess(masks, size, *target))
        return sem_seg_postprocess(semantic_scores(classes, masks), size, *target)


def _values(labels: Tensor) -> Tensor:
    """Return the values that occur in ``labels``, whole numbers, in order; on a CPU by counting instead of a sort."""
    if labels.device.type != "cpu" or not labels.numel() or labels.min() < 0 or labels.max() >= 1 << 16:
        return torch.unique(labels)
    return labels.flatten().bincount().nonzero()[:, 0].to(labels.dtype)
