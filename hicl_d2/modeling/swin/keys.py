"""Config keys of Swin, with the names and defaults of Mask2Former's project."""

from hicl_d2.d2.config import CfgNode


def add_swin_keys(cfg: CfgNode) -> None:
    """Add MODEL.SWIN, read by the backbone D2SwinTransformer."""
    swin = cfg.MODEL.SWIN = CfgNode()
    # Size of the images it was pretrained on (for absolute positions), and of its patches.
    swin.PRETRAIN_IMG_SIZE = 224
    swin.PATCH_SIZE = 4
    # Channels of the first stage; blocks and heads per stage; side of the windows; width of hidden layers over channels.
    swin.EMBED_DIM = 96
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.MLP_RATIO = 4.0
    # Whether query, key and value have biases; factor of their products (None: 1 / sqrt(channels of a head)).
    swin.QKV_BIAS = True
    swin.QK_SCALE = None
    # Dropout of features and of attention, and the drop rate of stochastic depth in the last block.
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3
    # Whether absolute position embeddings are added, and patch embeddings normalised.
    swin.APE = False
    swin.PATCH_NORM = True
    # Stages that are output, of res2 (stride 4) to res5 (stride 32).
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Whether activations are recomputed in the backward pass (gradient checkpointing), which saves memory.
    swin.USE_CHECKPOINT = False
