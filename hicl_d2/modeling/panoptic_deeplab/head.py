"""The semantic head of Panoptic-DeepLab (Cheng et al. 2020); the instance head is Detectron2's (`instances`).

Config keys, signatures, parameter names and initialisation are those of Detectron2's Panoptic-DeepLab.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.modeling.deeplab.head import (
    DeepLabV3PlusHead,
    make_predictor,
    make_two_convolutions,
    pixel_loss,
    upsample_scores,
)
from hicl_d2.modeling.deeplab.loss import build_loss


class PanopticDeepLabSemSegHead(DeepLabV3PlusHead):
    """DeepLabV3+'s decoder, two more convolutions to ``head_channels``, and a classifier.

    ``loss_top_k`` is the share of pixels that hard pixel mining averages; the others are the base class's.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        decoder_channels: Sequence[int],
        norm: Any,
        head_channels: int,
        loss_weight: float,
        loss_type: str,
        loss_top_k: float,
        class_weights: Sequence[float] = (),
        ignore_value: int,
        num_classes: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            input_shape, decoder_channels=decoder_channels, norm=norm, ignore_value=ignore_value, **kwargs
        )
        assert self.decoder_only, "the base class makes no classifier here"
        self.loss_weight = loss_weight
        width = decoder_channels[0]
        self.head = make_two_convolutions(
            width, width, head_channels, norm, self.use_depthwise_separable_conv
        )
        self.predictor = make_predictor(head_channels, num_classes)
        self.loss = build_loss(loss_type, ignore_value, loss_top_k, class_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the constructor's arguments; raises InputError for settings that do not fit the backbone."""
        settings = cfg.MODEL.SEM_SEG_HEAD
        own = {"head_channels": settings.HEAD_CHANNELS, "loss_top_k": settings.LOSS_TOP_K}
        return super().from_config(cfg, input_shape) | own

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return (None, losses) in training, else (logits (B, K, H, W), {}).

        Targets are labels (B, H, W), ``weights`` (B, H, W) multiply the loss of each pixel.
        """
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets, weights)
        return upsample_scores(logits, self.common_stride), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the common stride."""
        return self.predictor(self.head(super().layers(features)))

    def losses(
        self, predictions: Tensor, targets: Tensor | None, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of logits (B, K, h, w) against labels (B, H, W)."""
        loss = pixel_loss(self.loss, predictions, targets, self.common_stride, weights)
        return {"loss_sem_seg": loss * self.loss_weight}
