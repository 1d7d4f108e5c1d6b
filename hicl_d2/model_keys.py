"""Config keys of models: those of other projects under their names and defaults, and those of the project's backbones."""

from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.efficientnet_lite.keys import add_efficientnet_lite_keys


def add_model_keys(cfg: CfgNode) -> None:
    """Add them all to ``cfg``, which has DeepLab's keys."""
    _add_mask_former_keys(cfg)
    _add_swin_keys(cfg)
    _add_backbone_keys(cfg)
    add_efficientnet_lite_keys(cfg)
    _add_panoptic_deeplab_keys(cfg)


def _add_mask_former_keys(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former, with the names and defaults of the original project."""
    head = cfg.MODEL.SEM_SEG_HEAD
    # Channels of the mask features, and layers of the deformable encoder before them.
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 0
    # Pixel decoder; MSDeformAttnPixelDecoder is the one offered.
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # Features that the deformable encoder reads: the three coarsest of IN_FEATURES.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Points per head and heads of the deformable attention; 4, and MASK_FORMER.NHEADS, are offered.
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
    # Unused by Mask2Former; here so that the original's files load.
    settings.ENC_LAYERS = 0
    # Predictions of the decoder: that of the learned queries, then one per layer.
    settings.DEC_LAYERS = 6
    # Whether layers normalise before their work instead of after it.
    settings.PRE_NORM = False
    # Width of the decoder and number of its queries.
    settings.HIDDEN_DIM = 256
    settings.NUM_OBJECT_QUERIES = 100
    # What the decoder attends to; multi_scale_pixel_decoder is the one offered.
    settings.TRANSFORMER_IN_FEATURE = "res5"
    # Whether the decoder projects its input even where the widths are equal.
    settings.ENFORCE_INPUT_PROJ = False
    # Decoder; MultiScaleMaskedTransformerDecoder is the one offered.
    settings.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Images are padded to a multiple of this; below 0: of what the backbone asks for.
    settings.SIZE_DIVISIBILITY = 32
    # Points that a mask loss is taken at, how many times as many are drawn, and the share of the uncertain ones.
    settings.TRAIN_NUM_POINTS = 112 * 112
    settings.OVERSAMPLE_RATIO = 3.0
    settings.IMPORTANCE_SAMPLE_RATIO = 0.75
    settings.TEST = CfgNode()
    # What a test gives; semantic segmentation is offered.
    settings.TEST.SEMANTIC_ON = True
    settings.TEST.INSTANCE_ON = False
    settings.TEST.PANOPTIC_ON = False
    # Thresholds of panoptic inference; unused here.
    settings.TEST.OBJECT_MASK_THRESHOLD = 0.0
    settings.TEST.OVERLAP_THRESHOLD = 0.0
    # Whether masks are resized to the output before they are summed, which takes more memory.
    settings.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_swin_keys(cfg: CfgNode) -> None:
    """Add the keys of the backbone D2SwinTransformer, with the names and defaults of Mask2Former's project."""
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
    # Dropout, of attention too, and the share of paths left out in the last block.
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3
    # Whether positions are learned, and patches normalised.
    swin.APE = False
    swin.PATCH_NORM = True
    # Stages that are given out, of res2 (stride 4) to res5 (stride 32).
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Whether activations are computed again in the backward pass, which saves memory.
    swin.USE_CHECKPOINT = False


def _add_backbone_keys(cfg: CfgNode) -> None:
    """Add the keys of backbones from transformers and timm."""
    transformers = cfg.MODEL.TRANSFORMERS = CfgNode()
    # Type of the model ("convnext", "swin", "resnet", "dinov2", "segformer", ...) or a folder with its config.json.
    transformers.NAME = "convnext"
    # Features that are given out, under transformers' names.
    transformers.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Settings of transformers' own config of that type.
    transformers.SETTINGS = CfgNode(new_allowed=True)
    timm = cfg.MODEL.TIMM = CfgNode()
    # Name of a model in timm.list_models(); features that are given out, res{n} for the stride 2^n; its own arguments.
    timm.NAME = "resnet50"
    timm.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    timm.SETTINGS = CfgNode(new_allowed=True)


def _add_panoptic_deeplab_keys(cfg: CfgNode) -> None:
    """Add the keys of the whole Panoptic-DeepLab, with Detectron2's names and defaults; the model needs Detectron2."""
    # Targets: width of the bumps at instance centres in pixels; whether stuff, and crowds, are left out; up to which area
    # in pixels an instance is small, and the weight of its pixels.
    cfg.INPUT.GAUSSIAN_SIGMA = 10
    cfg.INPUT.IGNORE_STUFF_IN_OFFSET = True
    cfg.INPUT.SMALL_INSTANCE_AREA = 4096
    cfg.INPUT.SMALL_INSTANCE_WEIGHT = 3
    cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC = False
    head = cfg.MODEL.INS_EMBED_HEAD = CfgNode()
    # The head of centres and offsets; as the semantic head's keys of the same names.
    head.NAME = "PanopticDeepLabInsEmbedHead"
    head.IN_FEATURES = ["res2", "res3", "res5"]
    head.PROJECT_FEATURES = ["res2", "res3"]
    head.PROJECT_CHANNELS = [32, 64]
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    head.HEAD_CHANNELS = 32
    head.CONVS_DIM = 128
    head.COMMON_STRIDE = 4
    head.NORM = "SyncBN"
    # Weights of the losses of centres (squared error) and offsets (absolute error).
    head.CENTER_LOSS_WEIGHT = 200.0
    head.OFFSET_LOSS_WEIGHT = 0.01
    model = cfg.MODEL.PANOPTIC_DEEPLAB = CfgNode()
    # Smallest area of stuff; smallest score, distance in pixels and number of instance centres.
    model.STUFF_AREA = 2048
    model.CENTER_THRESHOLD = 0.1
    model.NMS_KERNEL = 7
    model.TOP_K_INSTANCE = 200
    # Whether instances are given out too; whether convolutions are depthwise separable (as SEM_SEG_HEAD's key).
    model.PREDICT_INSTANCES = True
    model.USE_DEPTHWISE_SEPARABLE_CONV = False
    # Images are padded to a multiple of this; below 1: of what the backbone asks for.
    model.SIZE_DIVISIBILITY = -1
    # Whether post-processing is left out, to measure the network alone.
    model.BENCHMARK_NETWORK_SPEED = False
