"""Hierarchical contrastive learning (Hi-CL) for semantic segmentation, a Detectron2 project.

Importing this package loads nothing else: take what you need from its sub-packages (``hicl_d2.contrast`` is the
method alone and needs torch and nothing more).
"""

from hicl_d2.version import __version__

__all__ = ["__version__"]
