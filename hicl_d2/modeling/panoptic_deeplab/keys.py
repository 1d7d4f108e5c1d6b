"""Config keys of Panoptic-DeepLab, with Detectron2's names and defaults."""

from hicl_d2.d2.config import CfgNode


def add_panoptic_deeplab_keys(cfg: CfgNode) -> None:
    """Add the keys of the semantic head, then those of the whole model, which needs Detectron2."""
    semantic = cfg.MODEL.SEM_SEG_HEAD
    # Channels of the convolutions between the decoder and the predictor.
    semantic.HEAD_CHANNELS = 256
    # Share of the hardest pixels that the loss averages (hard_pixel_mining).
    semantic.LOSS_TOP_K = 0.2
    # Targets: standard deviation in pixels of the Gaussians at instance centres; whether offsets ignore stuff; area in
    # pixels below which an instance is small, and the loss weight of its pixels; whether the labels ignore crowds.
    cfg.INPUT.GAUSSIAN_SIGMA = 10
    cfg.INPUT.IGNORE_STUFF_IN_OFFSET = True
    cfg.INPUT.SMALL_INSTANCE_AREA = 4096
    cfg.INPUT.SMALL_INSTANCE_WEIGHT = 3
    cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC = False
    head = cfg.MODEL.INS_EMBED_HEAD = CfgNode()
    # The head of instance centres and offsets; keys as in SEM_SEG_HEAD.
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
    # Smallest area of a stuff region in pixels; smallest score, suppression window and largest number of instance centres.
    model.STUFF_AREA = 2048
    model.CENTER_THRESHOLD = 0.1
    model.NMS_KERNEL = 7
    model.TOP_K_INSTANCE = 200
    # Whether instances are predicted too; whether convolutions are depthwise separable (must equal SEM_SEG_HEAD's key).
    model.PREDICT_INSTANCES = True
    model.USE_DEPTHWISE_SEPARABLE_CONV = False
    # Images are padded to a multiple of this; below 1: to a multiple of the backbone's size divisibility.
    model.SIZE_DIVISIBILITY = -1
    # Whether to skip post-processing, for timing the network.
    model.BENCHMARK_NETWORK_SPEED = False
