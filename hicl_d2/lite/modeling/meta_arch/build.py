"""The registry of meta-architectures, and building one from the config."""

import torch
from torch import nn

from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model"]

# Holds classes (or functions) that take a config and give a model.
META_ARCH_REGISTRY = Registry("META_ARCH")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that MODEL.META_ARCHITECTURE names, on MODEL.DEVICE, without loading MODEL.WEIGHTS."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
