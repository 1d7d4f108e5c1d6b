"""MODEL.TRANSFORMERS as a config and a model of transformers, and whether the images suit it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.d2.config import CfgNode

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
PREPROCESSING = "preprocessor_config.json"
# The names that configs of transformers give to the label that a loss leaves out.
IGNORE_KEYS = ("semantic_loss_ignore_index", "loss_ignore_index")


def named_config(settings: CfgNode, known: Iterable[str]) -> Any:
    """Return transformers' config of MODEL.TRANSFORMERS: NAME is a folder or one of the types ``known``.

    Raises InputError for a name or a setting that transformers does not have.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    own, known = {key: _plain(value) for key, value in settings.SETTINGS.items()}, sorted(known)
    try:
        if isinstance(own.get("backbone_config"), dict):
            inner = dict(own["backbone_config"])
            own["backbone_config"] = AutoConfig.for_model(inner.pop("model_type", ""), **inner)
        if Path(settings.NAME).is_dir():
            config = AutoConfig.from_pretrained(settings.NAME, local_files_only=True, **own)
        elif settings.NAME in known:
            config = AutoConfig.for_model(settings.NAME, **own)
        else:
            raise InputError(
                f"MODEL.TRANSFORMERS.NAME is {settings.NAME!r}{nearest(settings.NAME, known)}; it must be a folder or "
                f"one of {listing(known, 40)}"
            )
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"MODEL.TRANSFORMERS: {settings.NAME} cannot be configured: {one_line(error)[:300]}"
        ) from None
    there = {*type(config)().to_dict(), "backbone_config"}
    unknown = [key for key in own if key not in there]
    if unknown:
        raise InputError(
            f"MODEL.TRANSFORMERS.SETTINGS: {settings.NAME} has no {unknown[0]}{nearest(unknown[0], there)}"
        )
    return config


def segmentation_config(cfg: CfgNode) -> Any:
    """Return the config of a segmentation model, for the classes and the ignore value of MODEL.SEM_SEG_HEAD."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    settings, head = cfg.MODEL.TRANSFORMERS, cfg.MODEL.SEM_SEG_HEAD
    known = set(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    config = named_config(settings, known)
    if config.model_type not in known:
        raise InputError(
            f"MODEL.TRANSFORMERS.NAME: {settings.NAME} holds a {config.model_type}, which transformers has no semantic "
            f"segmentation for; it has {listing(known, 40)}"
        )
    if len(config.id2label) != head.NUM_CLASSES:
        config.num_labels = head.NUM_CLASSES
    for key in IGNORE_KEYS:
        if hasattr(config, key):
            setattr(config, key, head.IGNORE_VALUE)
    return config


def build_segmentation_model(cfg: CfgNode) -> Any:
    """Build the model, with the weights of MODEL.TRANSFORMERS.NAME where that is a folder with some, else at random."""
    from transformers import AutoModelForSemanticSegmentation

    config, folder = segmentation_config(cfg), Path(cfg.MODEL.TRANSFORMERS.NAME)
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in WEIGHT_FILES):
            return AutoModelForSemanticSegmentation.from_pretrained(
                str(folder), config=config, local_files_only=True, ignore_mismatched_sizes=True
            )
        return AutoModelForSemanticSegmentation.from_config(config)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"MODEL.TRANSFORMERS: {folder} cannot be built: {one_line(error)[:300]}") from error


def check_transformers_segmentor(cfg: CfgNode) -> None:
    """Raise InputError for a type, a setting or a normalisation that the model of MODEL.TRANSFORMERS does not have."""
    segmentation_config(cfg)
    for folder in (cfg.MODEL.TRANSFORMERS.NAME, cfg.MODEL.WEIGHTS):
        if folder and (Path(folder) / PREPROCESSING).is_file():
            _check_images(cfg, Path(folder))


def _check_images(cfg: CfgNode, folder: Path) -> None:
    """Raise InputError if images are not prepared as the folder's processor prepares them."""
    try:
        said = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
        scale = 1.0 / said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
        normalises = said.get("do_normalize", "image_mean" in said)
        mean = [scale * value for value in said["image_mean"]] if normalises else [0.0] * 3
        deviation = [scale * value for value in said["image_std"]] if normalises else [scale] * 3
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{folder / PREPROCESSING} cannot be read: {one_line(error)}") from None
    order = "BGR" if said.get("do_flip_channel_order") else "RGB"
    if order != cfg.INPUT.FORMAT:
        raise InputError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; {folder} was trained with {order}")
    for key, found, wanted in (
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, mean),
        ("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, deviation),
    ):
        if len(found) != len(wanted) or any(abs(a - b) > 0.5 for a, b in zip(found, wanted, strict=True)):
            rounded = [round(value, 3) for value in wanted]
            raise InputError(f"{key} is {list(found)}, but {folder} was trained with {rounded}; set it so")


def _plain(value: Any) -> Any:
    if isinstance(value, CfgNode | dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value
