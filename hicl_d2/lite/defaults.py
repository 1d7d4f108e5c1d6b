"""The default config: Detectron2's keys and values (0.6, commit 02b5c4e).

``SEGMENTATION`` holds the keys that this runtime reads. ``DETECTION`` holds the others: nothing here reads
them, they are kept so that a config file written for Detectron2 merges here and a dump is the same on both
sides; its config reference explains them.
"""

from typing import Any

SEGMENTATION: dict[str, Any] = {
    # Version of the set of keys.
    "VERSION": 2,
    "MODEL": {
        # Where the model runs: cuda, cuda:1, cpu.
        "DEVICE": "cuda",
        # Name in the registry of meta-architectures; the default one needs Detectron2.
        "META_ARCHITECTURE": "GeneralizedRCNN",
        # File or URL of the weights to start from; empty starts from the initialisation.
        "WEIGHTS": "",
        # Subtracted from, then dividing, each channel, in the order of INPUT.FORMAT and its range 0..255.
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {
            # Name in the registry of backbones.
            "NAME": "build_resnet_backbone",
            # Stages frozen from the input on: 0 none, 1 the stem, 2 the stem and res2, ...
            "FREEZE_AT": 2,
        },
        "FPN": {
            # Backbone features that become the pyramid; their strides double from one to the next.
            "IN_FEATURES": [],
            "OUT_CHANNELS": 256,
            # Norm after each convolution; empty for none.
            "NORM": "",
            # How the coarser level joins the finer one: sum or avg.
            "FUSE_TYPE": "sum",
        },
        "RESNETS": {
            # Number of layers: 18, 34, 50, 101, 152.
            "DEPTH": 50,
            # Stages that are given out, of stem, res2, ..., res5.
            "OUT_FEATURES": ["res4"],
            # Groups of the 3x3 convolutions (ResNeXt), and the width of each.
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            # Norm: BN, SyncBN, FrozenBN, GN.
            "NORM": "FrozenBN",
            # Whether a stage's stride is in its first 1x1 convolution (MSRA's weights) or in the 3x3.
            "STRIDE_IN_1X1": True,
            # Dilation of the last stage; 2 keeps the stride at 16.
            "RES5_DILATION": 1,
            # Channels after res2 (64 for depths 18 and 34), doubled by each stage, and after the stem.
            "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64,
            # Deformable convolutions per stage res2..res5, their modulation and groups; need Detectron2.
            "DEFORM_ON_PER_STAGE": [False, False, False, False],
            "DEFORM_MODULATED": False,
            "DEFORM_NUM_GROUPS": 1,
        },
        "SEM_SEG_HEAD": {
            # Name in the registry of semantic heads.
            "NAME": "SemSegFPNHead",
            # Features of the backbone that the head reads.
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            # Label of pixels that count neither in the loss nor in the metrics.
            "IGNORE_VALUE": 255,
            "NUM_CLASSES": 54,
            # Channels of the head's convolutions.
            "CONVS_DIM": 128,
            # Stride of the head's logits before they are resized to the image.
            "COMMON_STRIDE": 4,
            # Norm of the head's convolutions; empty for none.
            "NORM": "GN",
            "LOSS_WEIGHT": 1.0,
        },
    },
    "INPUT": {
        # Lengths of the short side in training, and how one is drawn: choice, or range (two lengths).
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        # Largest length of the long side in training.
        "MAX_SIZE_TRAIN": 1333,
        # The same in testing; a short side of 0 leaves the image as it is.
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        # Flip half of the images: horizontal, vertical, none.
        "RANDOM_FLIP": "horizontal",
        "CROP": {
            "ENABLED": False,
            # How SIZE is read: relative, relative_range, absolute, absolute_range.
            "TYPE": "relative_range",
            # Height and width, as a share of the image or in pixels.
            "SIZE": [0.9, 0.9],
        },
        # Order of the channels that the model sees: BGR, or a mode of Pillow such as RGB.
        "FORMAT": "BGR",
    },
    "DATASETS": {
        # Names of registered data sets; several are joined for training and evaluated one by one.
        "TRAIN": (),
        "TEST": (),
    },
    "DATALOADER": {
        # Worker processes per training process.
        "NUM_WORKERS": 4,
        # Whether upright and wide images go into separate batches.
        "ASPECT_RATIO_GROUPING": True,
        # Order of the training images.
        "SAMPLER_TRAIN": "TrainingSampler",
        # Whether images with annotations but no instance are left out.
        "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "SOLVER": {
        # WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR or DeepLab's WarmupPolyLR.
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        # Learning rate at the end of the cosine schedule.
        "BASE_LR_END": 0.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        # Weight decay of the parameters of norm layers, and of biases (null: WEIGHT_DECAY).
        "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_BIAS": None,
        # Learning rate of biases as a multiple of BASE_LR.
        "BIAS_LR_FACTOR": 1.0,
        # Factor at each iteration of STEPS, or at each of NUM_DECAYS equal parts of the schedule.
        "GAMMA": 0.1,
        "STEPS": (30000,),
        "NUM_DECAYS": 3,
        # Warm-up from WARMUP_FACTOR of the learning rate: linear or constant.
        "WARMUP_FACTOR": 0.001,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",
        # Whether the schedule starts after the warm-up instead of running beneath it.
        "RESCALE_INTERVAL": False,
        # Iterations between two checkpoints.
        "CHECKPOINT_PERIOD": 5000,
        # Images per step over all processes.
        "IMS_PER_BATCH": 16,
        # Number of processes that the batch and the schedule were chosen for; 0 leaves them as they are.
        "REFERENCE_WORLD_SIZE": 0,
        "CLIP_GRADIENTS": {
            "ENABLED": False,
            # value (each element), norm (each parameter) or full_model (the norm over all parameters).
            "CLIP_TYPE": "value",
            # Bound, and which norm it bounds.
            "CLIP_VALUE": 1.0,
            "NORM_TYPE": 2.0,
        },
        # Automatic mixed precision in training.
        "AMP": {"ENABLED": False},
    },
    "TEST": {
        # [task, metric, value, tolerance] that the final results must meet.
        "EXPECTED_RESULTS": [],
        # Iterations between two evaluations; 0 evaluates at the end alone.
        "EVAL_PERIOD": 0,
        "AUG": {
            # Averaging over sizes and flips in testing.
            "ENABLED": False,
            "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            "MAX_SIZE": 4000,
            "FLIP": True,
        },
        # Norm statistics computed afresh over NUM_ITER batches before each evaluation.
        "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    },
    # Where everything that a run writes goes.
    "OUTPUT_DIR": "./output",
    # Negative draws one.
    "SEED": -1,
    # Whether cuDNN times its algorithms for each new input size.
    "CUDNN_BENCHMARK": False,
    # Precision of float32 products on a GPU: highest, high, medium; empty leaves torch's.
    "FLOAT32_PRECISION": "",
    # Iterations between two pictures of training batches in TensorBoard; 0 for none.
    "VIS_PERIOD": 0,
    # A place for values that are tried out.
    "GLOBAL": {"HACK": 1.0},
}

_BOX_LOSS = {"BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "SMOOTH_L1_BETA": 0.0}
_POOLER = {"POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2"}
_UNIT_BOX = (1.0, 1.0, 1.0, 1.0)

DETECTION: dict[str, Any] = {
    "MODEL": {
        "LOAD_PROPOSALS": False,
        "MASK_ON": False,
        "KEYPOINT_ON": False,
        "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
        "ANCHOR_GENERATOR": {
            "NAME": "DefaultAnchorGenerator",
            "SIZES": [[32, 64, 128, 256, 512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "ANGLES": [[-90, 0, 90]],
            "OFFSET": 0.0,
        },
        "RPN": {
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["res4"],
            "BOUNDARY_THRESH": -1,
            "IOU_THRESHOLDS": [0.3, 0.7],
            "IOU_LABELS": [0, -1, 1],
            "BATCH_SIZE_PER_IMAGE": 256,
            "POSITIVE_FRACTION": 0.5,
            **_BOX_LOSS,
            "BBOX_REG_WEIGHTS": _UNIT_BOX,
            "LOSS_WEIGHT": 1.0,
            "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000,
            "POST_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
            "CONV_DIMS": [-1],
        },
        "ROI_HEADS": {
            "NAME": "Res5ROIHeads",
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.5],
            "IOU_LABELS": [0, 1],
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
            "PROPOSAL_APPEND_GT": True,
        },
        "ROI_BOX_HEAD": {
            "NAME": "",
            **_BOX_LOSS,
            **_POOLER,
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "NUM_FC": 0,
            "FC_DIM": 1024,
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
            "CLS_AGNOSTIC_BBOX_REG": False,
            "TRAIN_ON_PRED_BOXES": False,
            "USE_FED_LOSS": False,
            "USE_SIGMOID_CE": False,
            "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
            "FED_LOSS_NUM_CLASSES": 50,
        },
        "ROI_BOX_CASCADE_HEAD": {
            "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
            "IOUS": (0.5, 0.6, 0.7),
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            **_POOLER,
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
            "CLS_AGNOSTIC_MASK": False,
        },
        "ROI_KEYPOINT_HEAD": {
            "NAME": "KRCNNConvDeconvUpsampleHead",
            **_POOLER,
            "CONV_DIMS": (512,) * 8,
            "NUM_KEYPOINTS": 17,
            "MIN_KEYPOINTS_PER_IMAGE": 1,
            "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
            "LOSS_WEIGHT": 1.0,
        },
        "PANOPTIC_FPN": {
            "INSTANCE_LOSS_WEIGHT": 1.0,
            "COMBINE": {
                "ENABLED": True,
                "OVERLAP_THRESH": 0.5,
                "STUFF_AREA_LIMIT": 4096,
                "INSTANCES_CONFIDENCE_THRESH": 0.5,
            },
        },
        "RETINANET": {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "IOU_THRESHOLDS": [0.4, 0.5],
            "IOU_LABELS": [0, -1, 1],
            "PRIOR_PROB": 0.01,
            "SCORE_THRESH_TEST": 0.05,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.5,
            "BBOX_REG_WEIGHTS": _UNIT_BOX,
            "FOCAL_LOSS_GAMMA": 2.0,
            "FOCAL_LOSS_ALPHA": 0.25,
            "SMOOTH_L1_LOSS_BETA": 0.1,
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "NORM": "",
        },
    },
    "INPUT": {"MASK_FORMAT": "polygon"},
    "DATASETS": {
        "PROPOSAL_FILES_TRAIN": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
        "PROPOSAL_FILES_TEST": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    },
    "DATALOADER": {"REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True},
    "TEST": {"KEYPOINT_OKS_SIGMAS": [], "DETECTIONS_PER_IMAGE": 100},
}
