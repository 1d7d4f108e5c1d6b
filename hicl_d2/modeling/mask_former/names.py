"""Parameter names of the original Mask2Former and of transformers.

Left: the name in facebookresearch/Mask2Former, used in our state dict. Right: the name in transformers' module. ``{n}``
is the number of a layer. Parameters that are not listed have the same name in both.
"""

from collections.abc import Iterator

from hicl_d2.modeling.renaming import Names

# sem_seg_head.pixel_decoder.* and transformers' Mask2FormerPixelDecoder. The wrapped module itself is called
# "transformer" in the original, which has the parameter level_embed there.
PIXEL_DECODER: Names = (
    ("input_proj", "input_projections"),
    ("mask_features", "mask_projection"),
    ("transformer", ""),
)
# sem_seg_head.pixel_decoder.transformer.encoder.layers.{n}.*, within the wrapped module.
PIXEL_DECODER_LAYER: Names = (
    ("norm1", "self_attn_layer_norm"),
    ("linear1", "fc1"),
    ("linear2", "fc2"),
    ("norm2", "final_layer_norm"),
)
# sem_seg_head.predictor.* and transformers' Mask2FormerTransformerModule.
PREDICTOR: Names = (
    ("query_feat", "queries_features"),
    ("query_embed", "queries_embedder"),
    ("level_embed", "level_embed"),
    ("input_proj", "input_projections"),
    ("decoder_norm", "decoder.layernorm"),
)
PREDICTOR_LAYER: Names = (
    ("transformer_self_attention_layers.{n}.self_attn", "decoder.layers.{n}.self_attn"),
    ("transformer_self_attention_layers.{n}.norm", "decoder.layers.{n}.self_attn_layer_norm"),
    ("transformer_cross_attention_layers.{n}.multihead_attn", "decoder.layers.{n}.cross_attn"),
    ("transformer_cross_attention_layers.{n}.norm", "decoder.layers.{n}.cross_attn_layer_norm"),
    ("transformer_ffn_layers.{n}.linear1", "decoder.layers.{n}.fc1"),
    ("transformer_ffn_layers.{n}.linear2", "decoder.layers.{n}.fc2"),
    ("transformer_ffn_layers.{n}.norm", "decoder.layers.{n}.final_layer_norm"),
)
MASK_EMBEDDING_LAYER: Names = (("mask_embed.layers.{n}", "decoder.mask_predictor.mask_embedder.{n}.0"),)


def numbered(names: Names, count: int) -> Iterator[tuple[str, str]]:
    """Yield the rows of ``names`` for each of ``count`` layers."""
    for number in range(count):
        for ours, theirs in names:
            yield ours.format(n=number), theirs.format(n=number)
