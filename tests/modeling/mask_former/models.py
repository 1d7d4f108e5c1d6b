"""A small Mask2Former for tests, and weights that depend on names alone."""

import zlib

import torch

from hicl_d2.config import get_hicl_cfg

FEATURES = ["res2", "res3", "res4", "res5"]


def mask_former_cfg(backbone="build_resnet_backbone", architecture="MaskFormer", **settings):
    """Return the config of a narrow Mask2Former of 7 classes; ``settings`` are keys of MODEL.MASK_FORMER or its head."""
    cfg = get_hicl_cfg()
    model = cfg.MODEL
    model.DEVICE, model.META_ARCHITECTURE = "cpu", architecture
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = backbone, 0
    model.RESNETS.OUT_FEATURES = model.SEM_SEG_HEAD.IN_FEATURES = FEATURES
    model.RESNETS.NORM, model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = "BN", 18, 64
    swin = model.SWIN
    swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS, swin.DROP_PATH_RATE = 24, [1, 1, 2, 1], [1, 2, 4, 8], 0.0
    head = model.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES, head.NORM = "MaskFormerHead", 7, "GN"
    head.CONVS_DIM = head.MASK_DIM = 64
    head.PIXEL_DECODER_NAME, head.TRANSFORMER_ENC_LAYERS = "MSDeformAttnPixelDecoder", 2
    former = model.MASK_FORMER
    former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    former.HIDDEN_DIM, former.NUM_OBJECT_QUERIES, former.DIM_FEEDFORWARD = 64, 12, 128
    former.DROPOUT, former.DEC_LAYERS, former.TRAIN_NUM_POINTS = 0.0, 10, 256
    former.CLASS_WEIGHT, former.MASK_WEIGHT, former.DICE_WEIGHT = 2.0, 5.0, 5.0
    cfg.DATASETS.TRAIN = ("none",)
    hicl = model.HICL
    hicl.BASE, hicl.WARMUP_ITERS, hicl.WINDOWS = "MaskFormer", 0, [1, 2, 4]
    hicl.FEATURE, hicl.FEATURE_SIDE = "sem_seg_head.pixel_decoder.mask_features", "output"
    hicl.LOGITS = "sem_seg_head.predictor"
    hicl.ANCHORS = hicl.COMPONENTS = 64
    hicl.DIM = hicl.HIDDEN_DIM = 16
    for key, value in settings.items():
        (former if key in former else hicl if key in hicl else head)[key] = value
    return cfg


def fill(model):
    """Give every parameter and statistic a value that follows from its name, the same in any version of torch's layers."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or "empty_weight" in name:
                continue
            numbers = torch.randn(
                value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))
            )
            if name.endswith("running_var"):
                numbers = 1 + 0.1 * numbers.abs()
            elif value.dim() == 1:
                numbers = 0.1 * numbers + float("norm" in name and name.endswith("weight"))
            else:
                numbers = numbers / max(1, value[0].numel()) ** 0.5
            value.copy_(numbers)
    return model


def mask_former_batch(sizes=((96, 128), (96, 128)), num_classes=7):
    """Return images with labels in blocks of 16 pixels and an ignored border above."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in sizes:
        blocks = torch.randint(0, num_classes, (height // 16 + 1, width // 16 + 1), generator=generator)
        labels = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width].clone()
        labels[:8] = 255
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels, "height": height - 6, "width": width + 3})
    return batch
