"""What only Detectron2 has: its projects, imported for the models that they register, and single classes by name."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from hicl_d2.d2 import INSTALL_GUIDE, USES_DETECTRON2

__all__ = ("original", "panoptic_deeplab_mapper")


def panoptic_deeplab_mapper(cfg: Any) -> Any:
    """Return Detectron2's training mapper of Panoptic-DeepLab: labels, instance centres and offsets."""
    if not USES_DETECTRON2:
        raise ImportError(f"Panoptic-DeepLab's instance half: this needs Detectron2 ({INSTALL_GUIDE})")
    return importlib.import_module("detectron2.projects.panoptic_deeplab").PanopticDeeplabDatasetMapper(cfg)


def original(module: str, name: str) -> Any:
    """Return ``detectron2.<module>.<name>``.

    None without Detectron2, or without a package that the module needs (OpenCV, say).
    """
    if not USES_DETECTRON2:
        return None
    try:
        return getattr(importlib.import_module(f"detectron2.{module}"), name)
    except ModuleNotFoundError:
        return None


@contextmanager
def _panopticapi() -> Iterator[None]:
    """Stand in for the one function of panopticapi that Panoptic-DeepLab trains with, where it is not installed.

    It has no release that pip could install, and Detectron2 does not install it; its metric alone needs the whole.
    """
    if importlib.util.find_spec("panopticapi") is not None:
        yield
        return
    package, utils = ModuleType("panopticapi"), ModuleType("panopticapi.utils")
    utils.rgb2id = _ids_of_colours
    sys.modules.update({"panopticapi": package, "panopticapi.utils": utils})
    try:
        yield
    finally:
        del sys.modules["panopticapi"], sys.modules["panopticapi.utils"]


def _ids_of_colours(colours: Any) -> Any:
    """Return segment ids (H, W) for COCO's panoptic images (H, W, 3): red + 256 green + 65536 blue."""
    red, green, blue = np.moveaxis(np.asarray(colours).astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue


if USES_DETECTRON2:
    importlib.import_module("detectron2.projects.deeplab")
    with _panopticapi():
        importlib.import_module("detectron2.projects.panoptic_deeplab")
