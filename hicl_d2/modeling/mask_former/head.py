"""The head of Mask2Former: pixel decoder and predictor."""

from typing import Any

from torch import Tensor, nn

from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.modeling.mask_former.check import check_mask_former_head
from hicl_d2.modeling.mask_former.pixel_decoder import MSDeformAttnPixelDecoder
from hicl_d2.modeling.mask_former.predictor import MultiScaleMaskedTransformerDecoder


class MaskFormerHead(nn.Module):
    """Predict classes and masks of queries from a backbone's features; the losses are the model's (`SetCriterion`)."""

    # Of the state dict: the original renames parameters of files with a version below 2, and ours have the new names.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        ignore_value: int = 255,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build pixel decoder and predictor. Raises InputError for settings that do not fit the backbone."""
        head, settings = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        check_mask_former_head(cfg, {name: int(shape.stride or 0) for name, shape in input_shape.items()})
        shapes = {name: input_shape[name] for name in head.IN_FEATURES}
        pixel_decoder = MSDeformAttnPixelDecoder(
            dict(sorted(shapes.items(), key=lambda item: item[1].stride or 0)),
            channels=head.CONVS_DIM,
            mask_channels=head.MASK_DIM,
            heads=settings.NHEADS,
            encoder_layers=head.TRANSFORMER_ENC_LAYERS,
            dropout=settings.DROPOUT,
            common_stride=head.COMMON_STRIDE,
            norm=head.NORM,
        )
        predictor = MultiScaleMaskedTransformerDecoder(
            head.CONVS_DIM,
            num_classes=head.NUM_CLASSES,
            hidden_channels=settings.HIDDEN_DIM,
            mask_channels=head.MASK_DIM,
            queries=settings.NUM_OBJECT_QUERIES,
            heads=settings.NHEADS,
            feedforward=settings.DIM_FEEDFORWARD,
            layers=settings.DEC_LAYERS - 1,  # the original counts the learned queries as a layer
            pre_norm=settings.PRE_NORM,
            enforce_input_projection=settings.ENFORCE_INPUT_PROJ,
        )
        return {
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Return what the predictor predicts: "pred_logits", "pred_masks" and "aux_outputs"."""
        mask_features, multi_scale_features = self.pixel_decoder(features)
        return self.predictor(multi_scale_features, mask_features)
