"""The pixel decoder: multi-scale deformable attention over the coarse features, and one finer map for the masks."""

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.d2.layers import Conv2d, ShapeSpec, get_norm
from hicl_d2.modeling.mask_former.names import PIXEL_DECODER, PIXEL_DECODER_LAYER
from hicl_d2.modeling.renaming import Renamed

# Width of the hidden layers of the deformable encoder; the original has no config key for it.
ENCODER_FEEDFORWARD = 1024
# Number of scales of the deformable encoder and of the masked attention after it.
LEVELS = 3


class MSDeformAttnPixelDecoder(Renamed):
    """Transformers' pixel decoder with the original's parameter names, initialisation and float32.

    ``shapes`` holds channels and stride of each feature by name, from fine to coarse; the three coarsest go through
    the deformable encoder, finer ones down to ``common_stride`` are added as in a feature pyramid.
    """

    def __init__(
        self,
        shapes: dict[str, ShapeSpec],
        *,
        channels: int,
        mask_channels: int,
        heads: int,
        encoder_layers: int,
        dropout: float,
        common_stride: int,
        norm: str,
    ) -> None:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

        super().__init__()
        self.in_features = list(shapes)
        strides = [int(shape.stride or 0) for shape in shapes.values()]
        settings = Mask2FormerConfig(
            feature_size=channels,
            mask_feature_size=mask_channels,
            encoder_feedforward_dim=ENCODER_FEEDFORWARD,
            encoder_layers=encoder_layers,
            num_attention_heads=heads,
            dropout=dropout,
            common_stride=common_stride,
            feature_strides=strides,
        )
        decoder: Any = Mask2FormerPixelDecoder(settings, [shape.channels for shape in shapes.values()])
        for layer in decoder.encoder.layers:
            _rename(layer)
        finer = int(log2(min(strides[-LEVELS:])) - log2(common_stride))
        pyramid = [
            self._pyramid_level(shape.channels, channels, norm) for shape in list(shapes.values())[:finer]
        ]
        _drop_pyramid(decoder)
        decoder.lateral_convolutions = [lateral for lateral, _ in reversed(pyramid)]
        decoder.output_convolutions = [output for _, output in reversed(pyramid)]
        self.rename(decoder, PIXEL_DECODER)
        for number, (lateral, output) in enumerate(pyramid, start=1):
            self.add_module(f"adapter_{number}", lateral)
            self.add_module(f"layer_{number}", output)
        self._initialise(decoder)

    @staticmethod
    def _pyramid_level(in_channels: int | None, channels: int, norm: str) -> tuple[nn.Module, nn.Module]:
        bias = norm == ""
        lateral = Conv2d(in_channels, channels, kernel_size=1, bias=bias, norm=get_norm(norm, channels))
        output = Conv2d(
            channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=bias,
            norm=get_norm(norm, channels),
            activation=F.relu,
        )
        weight_init.c2_xavier_fill(lateral)
        weight_init.c2_xavier_fill(output)
        return lateral, output

    def _initialise(self, decoder: Any) -> None:
        """Initialise as the original does; transformers leaves ``level_embed`` uninitialised."""
        for projection in decoder.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        for parameter in decoder.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in decoder.encoder.layers:
            _initialise_sampling(layer.self_attn)
        nn.init.normal_(decoder.level_embed)
        weight_init.c2_xavier_fill(decoder.mask_projection)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Return mask features (B, C, H / common_stride, W / common_stride) and three maps, coarse to fine.

        Computed in float32 with autocast disabled: half precision cannot resolve the sampling positions.
        """
        maps = [features[name].float() for name in self.in_features]
        with torch.autocast(maps[0].device.type, enabled=False):
            outputs = self._wrapped(
                maps, output_attentions=False, output_hidden_states=False, return_dict=True
            )
        return outputs.mask_features, outputs.multi_scale_features


def _rename(layer: nn.Module) -> None:
    for ours, theirs in PIXEL_DECODER_LAYER:
        part = layer._modules.pop(theirs)
        layer.add_module(ours, part)
        object.__setattr__(layer, theirs, part)


def _drop_pyramid(decoder: nn.Module) -> None:
    """Remove transformers' own feature pyramid, which supports no norm but group normalisation."""
    for name in [name for name in decoder._modules if name.startswith(("adapter_", "layer_"))]:
        del decoder._modules[name]


@torch.no_grad()
def _initialise_sampling(attention: Any) -> None:
    """Initialise the sampling offsets: one direction per head, point i at i cells (Deformable DETR, Zhu et al. 2021)."""
    angles = torch.arange(attention.n_heads, dtype=torch.float32) * (2 * torch.pi / attention.n_heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, attention.n_points + 1, dtype=torch.float32)
    offsets = directions[:, None, None] * steps[:, None]
    shape = (attention.n_heads, attention.n_levels, attention.n_points, 2)
    nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.copy_(offsets.expand(shape).flatten())
    nn.init.zeros_(attention.attention_weights.weight)
    for linear in (attention.attention_weights, attention.value_proj, attention.output_proj):
        nn.init.zeros_(linear.bias)
