"""The original Mask2Former as a peer, where its checkout is on the Python path beside Detectron2."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

from torch import Tensor, nn

__all__ = [
    "has_mask2former",
    "import_mask2former",
    "mask2former_mapper",
    "mask2former_model",
    "mask2former_on_several_sizes",
    "with_instances",
]

NAME = "mask2former"


def has_mask2former() -> bool:
    """Return whether the original's checkout is on the Python path."""
    return importlib.util.find_spec(NAME) is not None


@functools.cache
def import_mask2former() -> Any:
    """Return the original's package, which registers its models with Detectron2.

    Two packages that it imports are stood in for by empty ones: its compiled operator, for which it has torch's own operators
    on a CPU, and timm, which its Swin alone needs.
    """
    layers = ModuleType("timm.models.layers")
    layers.DropPath = nn.Identity  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    stand_ins = {name: ModuleType(name) for name in ("MultiScaleDeformableAttention", "timm", "timm.models")}
    stand_ins[layers.__name__] = layers
    absent = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        return importlib.import_module(NAME)
    finally:  # what else was imported stays
        for name in absent:
            del sys.modules[name]


def mask2former_model(config: Any, ours: nn.Module) -> nn.Module:
    """Return the original's model of Detectron2's ``config`` with the backbone and the weights of the project's model."""
    import_mask2former()
    modeling = importlib.import_module("detectron2.modeling")
    config = config.clone()
    config.MODEL.META_ARCHITECTURE = "MaskFormer"
    config.MODEL.BACKBONE.NAME = "given"
    backbone = _as_backbone(modeling, ours.backbone)
    with mock.patch.dict(modeling.BACKBONE_REGISTRY._obj_map, given=lambda *_: backbone):
        model: nn.Module = modeling.build_model(config)
    model.backbone = ours.backbone  # under its own names
    model.load_state_dict(ours.state_dict())
    return model


def _as_backbone(modeling: Any, backbone: Any) -> nn.Module:
    """Return a Backbone of Detectron2's that stands for the project's, which is none, while a model is built."""
    shapes = {
        name: importlib.import_module("detectron2.layers").ShapeSpec(
            channels=shape.channels, stride=shape.stride
        )
        for name, shape in backbone.output_shape().items()
    }
    parts = {"output_shape": lambda self: shapes, "forward": None}
    given = type("Given", (modeling.Backbone,), parts)
    module: nn.Module = given()
    return module


def mask2former_mapper(config: Any, augmentations: list[Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the original's mapper of semantic data with the given augmentations."""
    mapper: Callable[[dict[str, Any]], dict[str, Any]] = import_mask2former().MaskFormerSemanticDatasetMapper(
        True,
        augmentations=augmentations,
        image_format=config.INPUT.FORMAT,
        ignore_label=config.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        size_divisibility=-1,
    )
    return mapper


def mask2former_on_several_sizes(config: Any, model: nn.Module) -> nn.Module:
    """Return the original's test-time augmentation of a model: sizes and flips by TEST.AUG of Detectron2's ``config``."""
    augmented: nn.Module = import_mask2former().SemanticSegmentorWithTTA(config, model)
    return augmented


def with_instances(batch: list[dict[str, Any]], ignore_value: int) -> list[dict[str, Any]]:
    """Return a batch with what the original trains with: the classes of each image and their masks."""
    structures = importlib.import_module("detectron2.structures")

    def instances(labels: Tensor) -> Any:
        ids = labels.unique()
        ids = ids[ids != ignore_value]
        found = structures.Instances(tuple(labels.shape))
        found.gt_classes = ids
        found.gt_masks = labels == ids[:, None, None]
        return found

    return [{**entry, "instances": instances(entry["sem_seg"])} for entry in batch]
