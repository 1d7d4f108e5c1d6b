"""Published pretrained weights: parameter names converted to the model's, and the normalisation that they were trained with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.efficientnet_lite.weights import with_efficientnet_names

# Torchvision's ResNets: regular expression in a parameter name, and its replacement in Detectron2's name.
TORCHVISION = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")

RGB = ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BGR = ("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
# Part of a path in MODEL.WEIGHTS, and channel order, mean and standard deviation of the images it was trained on.
IMAGES_OF = {
    "ImageNetPretrained/MSRA/": BGR,
    "ImageNetPretrained/torchvision/": RGB,
    "DeepLab/R-": RGB,
    "download.pytorch.org/models/": RGB,
    "SwinTransformer/storage/": RGB,
    "package://efficientnet_lite": ("RGB", (127.0,) * 3, (128.0,) * 3),
    "efficientnet-lite": ("RGB", (127.0,) * 3, (128.0,) * 3),
}


def with_known_names(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``weights`` of a torchvision ResNet or an EfficientNet-Lite under the backbone's names, None for others."""
    efficientnet = with_efficientnet_names(weights)
    if efficientnet is not None:
        return efficientnet
    if "layer1.0.conv1.weight" not in weights or "bn1.weight" not in weights:
        return None
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in TORCHVISION:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def read_foreign_file(path: str) -> dict[str, Any] | None:
    """Return the tensors of a Hugging Face folder or a ``.safetensors`` file by name, or None for any other file.

    The names for a folder are those of the backbone that build_transformers_backbone builds from it. Raises InputError
    for a folder that holds no model.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path))
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return None


def _read_folder(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in FOLDER_FILES):
        raise InputError(
            f"weights {folder}: a Hugging Face folder holds config.json and {' or '.join(FOLDER_FILES)}; this one does not"
        )
    from hicl_d2.modeling.hugging_face.backbone import load_folder

    return load_folder(folder)


def check_images_suit_weights(cfg: CfgNode) -> None:
    """Raise InputError if channel order and normalisation differ from those that MODEL.WEIGHTS were trained with.

    Checked for the published weights of `IMAGES_OF`; other weights pass.
    """
    known = next((images for part, images in IMAGES_OF.items() if part in cfg.MODEL.WEIGHTS), None)
    if known is None:
        return
    order, mean, deviation = known
    asked: dict[str, tuple[Any, Any]] = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, order),
        "MODEL.PIXEL_MEAN": (list(cfg.MODEL.PIXEL_MEAN), list(mean)),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), list(deviation)),
    }
    for key, (found, wanted) in asked.items():
        same = found == wanted if isinstance(wanted, str) else _close(found, wanted)
        if not same:
            raise InputError(
                f"{key} is {found}, but the weights {cfg.MODEL.WEIGHTS} were trained with {wanted}; set it so"
            )


def _close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) < 0.5 for a, b in zip(found, wanted, strict=True))
