"""The transformer decoder: each layer attends only to the pixels inside the masks predicted by the layer before."""

from collections.abc import Sequence
from typing import Any

from fvcore.nn import weight_init
from torch import Tensor, nn

from hicl_d2.modeling.mask_former.names import (
    MASK_EMBEDDING_LAYER,
    PREDICTOR,
    PREDICTOR_LAYER,
    numbered,
)
from hicl_d2.modeling.renaming import Renamed, SelfAttention


class MultiScaleMaskedTransformerDecoder(Renamed):
    """Transformers' decoder with the original's parameter names and initialisation, and the classifier of queries.

    ``layers`` decoder layers give ``layers`` + 1 predictions, the first from the learned queries before any layer.
    """

    _version = 2  # of the state dict, as the head's

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_channels: int,
        mask_channels: int,
        queries: int,
        heads: int,
        feedforward: int,
        layers: int,
        pre_norm: bool,
        enforce_input_projection: bool,
    ) -> None:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

        super().__init__()
        settings = Mask2FormerConfig(
            hidden_dim=hidden_channels,
            mask_feature_size=mask_channels,
            num_queries=queries,
            num_attention_heads=heads,
            dim_feedforward=feedforward,
            decoder_layers=layers + 1,
            pre_norm=pre_norm,
            enforce_input_projection=enforce_input_projection,
            dropout=0.0,
        )
        wrapped = Mask2FormerTransformerModule(in_channels, settings)
        for layer in wrapped.decoder.layers:
            layer.self_attn = SelfAttention(hidden_channels, heads)
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for projection in wrapped.input_projections:
            if isinstance(projection, nn.Conv2d):
                weight_init.c2_xavier_fill(projection)
        self.rename(
            wrapped,
            [*PREDICTOR, *numbered(PREDICTOR_LAYER, layers), *numbered(MASK_EMBEDDING_LAYER, 3)],
        )
        self.class_embed = nn.Linear(hidden_channels, num_classes + 1)

    def forward(self, multi_scale_features: Sequence[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """Return class logits "pred_logits" (B, Q, K + 1) and mask logits "pred_masks" (B, Q, h, w) of the last layer.

        The last class is "no object". "aux_outputs" lists the predictions of the earlier layers, in order.
        """
        decoded = self._wrapped(multi_scale_features, mask_features)
        predictions = [
            {"pred_logits": self.class_embed(states.transpose(0, 1)), "pred_masks": masks}
            for states, masks in zip(
                decoded.intermediate_hidden_states, decoded.masks_queries_logits, strict=True
            )
        ]
        return {**predictions[-1], "aux_outputs": predictions[:-1]}
