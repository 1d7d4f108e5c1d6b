"""Detectron2's projects, imported for what they register: where they can be had, theirs comes before ours."""

import contextlib
import importlib

from hicl_d2.d2 import USES_DETECTRON2

__all__ = ()

if USES_DETECTRON2:
    importlib.import_module("detectron2.projects.deeplab")
    with contextlib.suppress(ImportError):  # it needs panopticapi, which Detectron2 does not install
        importlib.import_module("detectron2.projects.panoptic_deeplab")
