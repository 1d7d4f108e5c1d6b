"""Swin (Liu et al., "Swin Transformer", ICCV 2021): the code of transformers, the parameter names of Mask2Former's project.

The weights that Swin's authors published have the same names; they load with ``?matching_heuristics=True``.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.d2.modeling import Backbone
from hicl_d2.modeling.renaming import LinearPart, Names, Renamed
from hicl_d2.modeling.swin.check import SWIN_STRIDES, check_swin

# Name here and in the original, name in transformers' SwinBackbone; s counts stages, b blocks. A block's attn is the
# module of transformers that holds relative_position_bias_table; attn.qkv is one layer here and three there.
STEM: Names = (
    ("patch_embed.proj", "swin.embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "swin.embeddings.norm"),
)
BLOCK: Names = (
    ("layers.{s}.blocks.{b}.norm1", "swin.encoder.layers.{s}.blocks.{b}.layernorm_before"),
    ("layers.{s}.blocks.{b}.attn", "swin.encoder.layers.{s}.blocks.{b}.attention.relative_position_bias"),
    ("layers.{s}.blocks.{b}.attn.proj", "swin.encoder.layers.{s}.blocks.{b}.attention.o_proj"),
    ("layers.{s}.blocks.{b}.norm2", "swin.encoder.layers.{s}.blocks.{b}.layernorm_after"),
    ("layers.{s}.blocks.{b}.mlp", "swin.encoder.layers.{s}.blocks.{b}.mlp"),
)
BETWEEN_STAGES: Names = (("layers.{s}.downsample", "swin.encoder.layers.{s}.downsample"),)
OUTPUT: Names = (("norm{s}", "hidden_states_norms.stage{t}"),)


class _Chain:
    """Call one module after the other, without registering them: both are registered under other names."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class D2SwinTransformer(Renamed, Backbone):
    """Transformers' Swin as a backbone that outputs ``res2`` (stride 4) to ``res5`` (stride 32)."""

    _wrapped: Any

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """Build it as MODEL.SWIN says. Raises InputError for settings that are not offered."""
        from transformers import SwinConfig
        from transformers.models.swin.modeling_swin import SwinBackbone

        super().__init__()
        settings = cfg.MODEL.SWIN
        check_swin(settings)
        stages = [int(name[-1]) - 1 for name in settings.OUT_FEATURES]
        arguments: dict[str, Any] = {
            "image_size": settings.PRETRAIN_IMG_SIZE,
            "patch_size": settings.PATCH_SIZE,
            "num_channels": input_shape.channels,
            "embed_dim": settings.EMBED_DIM,
            "depths": list(settings.DEPTHS),
            "num_heads": list(settings.NUM_HEADS),
            "window_size": settings.WINDOW_SIZE,
            "mlp_ratio": settings.MLP_RATIO,
            "qkv_bias": settings.QKV_BIAS,
            "hidden_dropout_prob": settings.DROP_RATE,
            "attention_probs_dropout_prob": settings.ATTN_DROP_RATE,
            "drop_path_rate": settings.DROP_PATH_RATE,
            "out_features": [f"stage{stage}" for stage in stages],
        }
        wrapped: Any = SwinBackbone(SwinConfig(**arguments))
        self.rename(wrapped, list(_names(settings.DEPTHS, stages)))
        for stage, depth in enumerate(settings.DEPTHS):
            for block in range(depth):
                layer = wrapped.swin.encoder.layers[stage].blocks[block]
                home = self.get_submodule(f"layers.{stage}.blocks.{block}.attn")
                self._join_projections(layer.attention, home, settings)
                # Stochastic depth drops the second half of a block too, in the paper and the original; not in transformers.
                object.__setattr__(layer, "mlp", _Chain(layer.mlp, layer.drop_path))
        if settings.USE_CHECKPOINT:
            wrapped.activation_checkpointing_enable()
        self._initialise()
        self._out_features = sorted(settings.OUT_FEATURES)
        self._out_feature_strides = {name: SWIN_STRIDES[name] for name in self._out_features}
        self._out_feature_channels = {
            name: settings.EMBED_DIM * 2 ** (int(name[-1]) - 2) for name in self._out_features
        }

    @staticmethod
    def _join_projections(attention: Any, home: nn.Module, settings: CfgNode) -> None:
        width = attention.q_proj.in_features
        home.qkv = nn.Linear(width, 3 * width, bias=settings.QKV_BIAS)
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            setattr(attention, name, LinearPart(home.qkv, index))
        if settings.QK_SCALE is not None:
            attention.scaling = settings.QK_SCALE
        # In the original's checkpoints this buffer is saved, with the shape (area, area).
        area = settings.WINDOW_SIZE**2
        positions = home.get_buffer("relative_position_index")
        home.register_buffer("relative_position_index", positions.view(area, area))

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()
            elif name.endswith(".attn"):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    @property
    def size_divisibility(self) -> int:
        """Return the number of which height and width of the images must be multiples."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features (B, C, H / stride, W / stride) of images (B, 3, H, W)."""
        return dict(zip(self._out_features, self._wrapped(images).feature_maps, strict=True))


def _names(depths: list[int], stages: list[int]) -> Iterator[tuple[str, str]]:
    yield from STEM
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield from (
                (ours.format(s=stage, b=block), theirs.format(s=stage, b=block)) for ours, theirs in BLOCK
            )
        if stage + 1 < len(depths):
            yield from ((ours.format(s=stage), theirs.format(s=stage)) for ours, theirs in BETWEEN_STAGES)
    for stage in stages:
        yield from ((ours.format(s=stage - 1), theirs.format(t=stage)) for ours, theirs in OUTPUT)
