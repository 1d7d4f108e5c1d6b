"""Config keys of Mask2Former, with the names and defaults of the original project."""

from hicl_d2.d2.config import CfgNode


def add_mask_former_keys(cfg: CfgNode) -> None:
    """Add the keys of head, decoder and losses to MODEL.SEM_SEG_HEAD and MODEL.MASK_FORMER."""
    head = cfg.MODEL.SEM_SEG_HEAD
    # Channels of the mask features, and layers of the deformable encoder before them.
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 0
    # Pixel decoder; only MSDeformAttnPixelDecoder is supported.
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # Features that the deformable encoder reads: the three coarsest of IN_FEATURES.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Sampling points per head, and heads, of the deformable attention; only 4 and MASK_FORMER.NHEADS are supported.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    settings = cfg.MODEL.MASK_FORMER = CfgNode()
    # Whether every layer of the decoder has losses, or the last alone.
    settings.DEEP_SUPERVISION = True
    # Weights of the losses, and of "no object" within the classes.
    settings.NO_OBJECT_WEIGHT = 0.1
    settings.CLASS_WEIGHT = 1.0
    settings.DICE_WEIGHT = 1.0
    settings.MASK_WEIGHT = 20.0
    # Heads of attention, dropout in the pixel decoder, width of the decoder's hidden layers.
    settings.NHEADS = 8
    settings.DROPOUT = 0.1
    settings.DIM_FEEDFORWARD = 2048
    # Not read by Mask2Former; present so that the original's config files load.
    settings.ENC_LAYERS = 0
    # Number of predictions: one from the learned queries, then one per decoder layer.
    settings.DEC_LAYERS = 6
    # Whether layers normalise their input (pre-norm) instead of their output.
    settings.PRE_NORM = False
    # Width of the decoder and number of its queries.
    settings.HIDDEN_DIM = 256
    settings.NUM_OBJECT_QUERIES = 100
    # Features that the decoder attends to; only multi_scale_pixel_decoder is supported.
    settings.TRANSFORMER_IN_FEATURE = "res5"
    # Whether the decoder projects its input even where the widths are equal.
    settings.ENFORCE_INPUT_PROJ = False
    # Decoder; only MultiScaleMaskedTransformerDecoder is supported.
    settings.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Images are padded to a multiple of this; below 0: to a multiple of the backbone's size divisibility.
    settings.SIZE_DIVISIBILITY = 32
    # Points at which a mask loss is computed, candidates drawn per point, and share of points that are the most uncertain.
    settings.TRAIN_NUM_POINTS = 112 * 112
    settings.OVERSAMPLE_RATIO = 3.0
    settings.IMPORTANCE_SAMPLE_RATIO = 0.75
    settings.TEST = CfgNode()
    # Outputs of a test; only semantic segmentation is supported.
    settings.TEST.SEMANTIC_ON = True
    settings.TEST.INSTANCE_ON = False
    settings.TEST.PANOPTIC_ON = False
    # Thresholds of panoptic inference; not read here.
    settings.TEST.OBJECT_MASK_THRESHOLD = 0.0
    settings.TEST.OVERLAP_THRESHOLD = 0.0
    # Whether masks are resized to the output before they are summed, which takes more memory.
    settings.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
