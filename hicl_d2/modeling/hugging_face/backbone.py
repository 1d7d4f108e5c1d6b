"""Any backbone of transformers: ResNet, Swin, ConvNeXt, DINOv2, MiT (segformer) and others, by the name of its type."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.command.errors import InputError, listing
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import ShapeSpec
from hicl_d2.d2.modeling import Backbone
from hicl_d2.modeling.hugging_face.config import named_config

MIT = "segformer"  # transformers has its encoder, but not as a backbone
PROBE_SIDE = 64


class TransformersBackbone(Backbone):
    """A backbone of transformers; its features have transformers' names ("stage1", ...), its parameters ``model.*``.

    Channels and strides are measured on a small image. Parameters that no feature depends on are frozen:
    DistributedDataParallel would wait for their gradients.
    """

    def __init__(self, model: nn.Module, names: list[str], patch: int = 1) -> None:
        """``names`` are the features of ``model``, finest first; images must be multiples of ``patch`` pixels."""
        super().__init__()
        self.model: Any = model
        self._out_features = names
        side = -(-PROBE_SIDE // patch) * patch
        was_training = self.training
        self.eval()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            maps = self(torch.zeros(1, 3, side, side))
            sum(each.sum() for each in maps.values()).backward()
        self.train(was_training)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self._out_feature_channels = {name: each.shape[1] for name, each in maps.items()}
        self._out_feature_strides = {name: side // each.shape[-1] for name, each in maps.items()}

    @property
    def size_divisibility(self) -> int:
        """Return the coarsest stride, of which height and width of the images must be multiples."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features (B, C, H / stride, W / stride) of images (B, 3, H, W)."""
        if hasattr(self.model, "feature_names"):
            return self.model(images)
        return dict(zip(self._out_features, self.model(images).feature_maps, strict=True))


class MixTransformer(nn.Module):
    """The encoder of SegFormer (Xie et al. 2021), that outputs its four stages by name."""

    def __init__(self, encoder: nn.Module, feature_names: list[str]) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.feature_names = feature_names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the asked stages (B, C, H / stride, W / stride) of images (B, 3, H, W)."""
        maps = self.encoder(images, output_hidden_states=True).hidden_states
        return {name: maps[int(name.removeprefix("stage")) - 1] for name in self.feature_names}


def build_transformers_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TransformersBackbone:
    """Build MODEL.TRANSFORMERS: NAME is a type ("convnext") or a folder, SETTINGS are those of transformers' config.

    Raises InputError for a type, a setting or a feature that transformers does not have.
    """
    settings = cfg.MODEL.TRANSFORMERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    config = named_config(settings, {*MODEL_FOR_BACKBONE_MAPPING_NAMES, MIT})
    names = _features(settings, config)
    if config.model_type == MIT:
        from transformers import AutoModel

        model: Any = MixTransformer(AutoModel.from_config(config), names)
    else:
        from transformers import AutoBackbone

        config.out_features = names
        model = AutoBackbone.from_config(config)
    patch = getattr(config, "patch_size", 1)
    return TransformersBackbone(model, names, patch if isinstance(patch, int) else 1)


def load_folder(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a Hugging Face folder under the names that they have in a `TransformersBackbone`.

    Transformers reads the files, so those of its older versions and of classifiers load too.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if config.model_type == MIT:
        model, report = AutoModel.from_pretrained(str(folder), **options)
        prefix = "model.encoder."
    else:
        config.out_features = [name for name in config.stage_names if name != "stem"]
        # Not AutoBackbone, which takes an absolute path for the name of a repository.
        backbone: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        model, report = backbone.from_pretrained(str(folder), config=config, **options)
        prefix = "model."
    # Parameters that the files lack were initialised at random by transformers: they are no weights to load.
    missing = set(report["missing_keys"])
    return {f"{prefix}{name}": value for name, value in model.state_dict().items() if name not in missing}


def _features(settings: CfgNode, config: Any) -> list[str]:
    count = len(config.depths) if config.model_type == MIT else 0
    stages = [f"stage{number + 1}" for number in range(count)] or list(config.stage_names)
    wanted = list(settings.OUT_FEATURES)
    missing = [name for name in wanted if name not in stages]
    if missing or not wanted:
        asked = f"names {listing(missing)}" if missing else "is empty"
        raise InputError(
            f"MODEL.TRANSFORMERS.OUT_FEATURES {asked}; what {config.model_type} has here: {', '.join(stages)}"
        )
    return sorted(wanted, key=stages.index)
