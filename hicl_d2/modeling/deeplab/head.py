"""DeepLabV3 (Chen et al. 2017) and DeepLabV3+ (Chen et al. 2018).

Config keys, signatures, parameter names, initialisation and figures are those of Detectron2's DeepLab project. Unlike
Detectron2's, these heads train and predict on images of any size.
"""

from collections.abc import Sequence
from typing import Any

from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.d2.config import CfgNode, configurable
from hicl_d2.d2.layers import ASPP, Conv2d, DepthwiseSeparableConv2d, ShapeSpec, get_norm
from hicl_d2.modeling.deeplab.check import check_deeplab_head, read_class_weights, training_crop
from hicl_d2.modeling.deeplab.fused_loss import can_fuse, upsampled_loss
from hicl_d2.modeling.deeplab.joining import join
from hicl_d2.modeling.deeplab.loss import build_loss
from hicl_d2.modeling.deeplab.pooling import accept_any_size


def make_predictor(in_channels: int, num_classes: int) -> Conv2d:
    """Make the 1x1 convolution that classifies pixels, initialised with a deviation of 0.001."""
    predictor = Conv2d(in_channels, num_classes, kernel_size=1)
    nn.init.normal_(predictor.weight, 0, 0.001)
    nn.init.constant_(predictor.bias, 0)
    return predictor


def make_two_convolutions(
    in_channels: int, hidden_channels: int, out_channels: int, norm: Any, use_depthwise_separable_conv: bool
) -> nn.Module:
    """Make two 3x3 convolutions, or one depthwise separable 5x5 convolution of the same receptive field."""
    if use_depthwise_separable_conv:
        return DepthwiseSeparableConv2d(
            in_channels, out_channels, 5, 2, norm1=norm, activation1=F.relu, norm2=norm, activation2=F.relu
        )
    both = nn.Sequential(
        *(
            Conv2d(a, b, 3, padding=1, bias=norm == "", norm=get_norm(norm, b), activation=F.relu)
            for a, b in [(in_channels, hidden_channels), (hidden_channels, out_channels)]
        )
    )
    for convolution in both:
        weight_init.c2_xavier_fill(convolution)
    return both


def make_aspp(
    in_channels: int,
    out_channels: int,
    dilations: Sequence[int],
    *,
    norm: Any,
    dropout: float,
    crop: Sequence[int] | None,
    stride: int,
    use_depthwise_separable_conv: bool,
) -> ASPP:
    """Make the pyramid for feature maps of ``stride`` and of any size.

    Its image pooling averages over windows of the size that a training crop of ``crop`` (height, width) pixels has at
    that stride, rounded up; over the whole map where ``crop`` is None.
    """
    aspp = ASPP(
        in_channels,
        out_channels,
        dilations,
        norm=norm,
        activation=F.relu,
        pool_kernel_size=None if crop is None else (-(-crop[0] // stride), -(-crop[1] // stride)),
        dropout=dropout,
        use_depthwise_separable_conv=use_depthwise_separable_conv,
    )
    return accept_any_size(aspp)


def pixel_loss(
    loss: nn.Module, logits: Tensor, targets: Tensor | None, stride: int, weights: Tensor | None = None
) -> Tensor:
    """Return ``loss`` of logits (B, K, h, w), upsampled by ``stride``, against labels (B, H, W).

    Where (H, W) are no multiples of the stride, the upsampled logits are cropped to (H, W).
    """
    assert targets is not None, "labels (sem_seg) are needed in training"
    if can_fuse(loss, logits):
        return upsampled_loss(loss, logits, targets, stride, weights)
    logits = upsample(logits, stride)[..., : targets.shape[-2], : targets.shape[-1]]
    return loss(logits, targets, weights)


def upsample(logits: Tensor, stride: int) -> Tensor:
    """Return (B, K, h x stride, w x stride), bilinear."""
    return F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)


def upsample_scores(logits: Tensor, stride: int) -> Tensor:
    """Return what :func:`upsample` does, class by class in memory.

    With few classes, the last axis of a channels_last map is too short for vector instructions, and whatever is done with the
    scores at the image's size (resizing, the highest of them) would copy them first.
    """
    return upsample(logits.contiguous(), stride)


class DeepLabV3PlusHead(nn.Module):
    """The head of DeepLabV3+: the pyramid on the coarsest feature, then a decoder that joins finer ones.

    ``decoder_channels`` has one entry per feature, from fine to coarse (the last is the pyramid's), and
    ``project_channels`` one for each but the coarsest. ``train_size`` is (height, width) of the training crops, or
    None. Without ``num_classes`` the head returns the decoder's feature and no prediction.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        project_channels: Sequence[int],
        aspp_dilations: Sequence[int],
        aspp_dropout: float,
        decoder_channels: Sequence[int],
        common_stride: int,
        norm: Any,
        train_size: Sequence[int] | None,
        loss_weight: float = 1.0,
        loss_type: str = "cross_entropy",
        class_weights: Sequence[float] = (),
        ignore_value: int = -1,
        num_classes: int | None = None,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        super().__init__()
        shapes = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        self.in_features = list(shapes)
        self.ignore_value = ignore_value
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.loss_type = loss_type
        self.decoder_only = num_classes is None
        self.use_depthwise_separable_conv = use_depthwise_separable_conv
        assert len(project_channels) == len(shapes) - 1, (
            f"{len(shapes)} features, project_channels {project_channels}"
        )
        assert len(decoder_channels) == len(shapes), (
            f"{len(shapes)} features, decoder_channels {decoder_channels}"
        )

        self.decoder = nn.ModuleDict()
        *finer, coarsest = self.in_features
        for index, name in enumerate(finer):
            projected = project_channels[index]
            project = Conv2d(
                shapes[name].channels,
                projected,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, projected),
                activation=F.relu,
            )
            weight_init.c2_xavier_fill(project)
            joined, out_channels = projected + decoder_channels[index + 1], decoder_channels[index]
            fuse = make_two_convolutions(
                joined, out_channels, out_channels, norm, use_depthwise_separable_conv
            )
            self.decoder[name] = nn.ModuleDict({"project_conv": project, "fuse_conv": fuse})
        aspp = make_aspp(
            shapes[coarsest].channels,
            decoder_channels[-1],
            aspp_dilations,
            norm=norm,
            dropout=aspp_dropout,
            crop=train_size,
            stride=shapes[coarsest].stride,
            use_depthwise_separable_conv=use_depthwise_separable_conv,
        )
        self.decoder[coarsest] = nn.ModuleDict({"project_conv": aspp})
        if num_classes is not None:
            self.predictor = make_predictor(decoder_channels[0], num_classes)
            self.loss = build_loss(loss_type, ignore_value, class_weights=class_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the constructor's arguments; raises InputError for settings that do not fit the backbone."""
        settings = cfg.MODEL.SEM_SEG_HEAD
        check_deeplab_head(cfg, {name: shape.stride for name, shape in input_shape.items()})
        finer = len(settings.IN_FEATURES) - 1
        return {
            "input_shape": {
                name: shape for name, shape in input_shape.items() if name in settings.IN_FEATURES
            },
            "project_channels": settings.PROJECT_CHANNELS,
            "aspp_dilations": settings.ASPP_DILATIONS,
            "aspp_dropout": settings.ASPP_DROPOUT,
            "decoder_channels": [settings.CONVS_DIM] * finer + [settings.ASPP_CHANNELS],
            "common_stride": settings.COMMON_STRIDE,
            "norm": settings.NORM,
            "train_size": training_crop(cfg),
            "loss_weight": settings.LOSS_WEIGHT,
            "loss_type": settings.LOSS_TYPE,
            "class_weights": read_class_weights(settings),
            "ignore_value": settings.IGNORE_VALUE,
            "num_classes": settings.NUM_CLASSES,
            "use_depthwise_separable_conv": settings.USE_DEPTHWISE_SEPARABLE_CONV,
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> Any:
        """Return (None, losses) in training, else (logits (B, K, H, W), {}); targets are labels (B, H, W).

        Without classes it returns the decoder's feature (B, C, h, w).
        """
        y = self.layers(features)
        if self.decoder_only:
            return y
        if self.training:
            return None, self.losses(y, targets)
        return upsample_scores(y, self.common_stride), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the common stride, or without classes the decoder's feature."""
        *finer, coarsest = self.in_features
        y = self._decoder_part(coarsest, "project_conv")(features[coarsest])
        for name in reversed(finer):
            projected = self._decoder_part(name, "project_conv")(features[name])
            y = join(self._decoder_part(name, "fuse_conv"), projected, y)
        return y if self.decoder_only else self.predictor(y)

    def _decoder_part(self, feature: str, part: str) -> nn.Module:
        return self.decoder.get_submodule(f"{feature}.{part}")

    def losses(self, predictions: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Return the loss of logits (B, K, h, w) against labels (B, H, W)."""
        loss = pixel_loss(self.loss, predictions, targets, self.common_stride)
        return {"loss_sem_seg": loss * self.loss_weight}


class DeepLabV3Head(nn.Module):
    """The head of DeepLabV3: the pyramid on one feature, and a classifier on it."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        settings = cfg.MODEL.SEM_SEG_HEAD
        check_deeplab_head(cfg, {name: shape.stride for name, shape in input_shape.items()})
        self.in_features = settings.IN_FEATURES
        self.ignore_value = settings.IGNORE_VALUE
        self.common_stride = settings.COMMON_STRIDE
        self.loss_weight = settings.LOSS_WEIGHT
        self.loss_type = settings.LOSS_TYPE
        self.aspp = make_aspp(
            input_shape[self.in_features[0]].channels,
            settings.ASPP_CHANNELS,
            settings.ASPP_DILATIONS,
            norm=settings.NORM,
            dropout=settings.ASPP_DROPOUT,
            crop=training_crop(cfg),
            stride=self.common_stride,
            use_depthwise_separable_conv=settings.USE_DEPTHWISE_SEPARABLE_CONV,
        )
        self.predictor = make_predictor(settings.CONVS_DIM, settings.NUM_CLASSES)
        self.loss = build_loss(self.loss_type, self.ignore_value, class_weights=read_class_weights(settings))

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return (None, losses) in training, else (logits (B, K, H, W), {}); targets are labels (B, H, W)."""
        logits = self.predictor(self.aspp(features[self.in_features[0]]))
        if self.training:
            return None, self.losses(logits, targets)
        return upsample_scores(logits, self.common_stride), {}

    def losses(self, predictions: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Return the loss of logits (B, K, h, w) against labels (B, H, W)."""
        loss = pixel_loss(self.loss, predictions, targets, self.common_stride)
        return {"loss_sem_seg": loss * self.loss_weight}
