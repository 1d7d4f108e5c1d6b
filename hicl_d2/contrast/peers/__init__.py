"""Published contrasts that Hi-CL is compared with, written from their papers in the same frame."""

from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.peers.contextual import ContextualContrast
from hicl_d2.contrast.peers.multiscale import MultiScaleContrast
from hicl_d2.contrast.peers.pixel import PixelContrast, PixelMemoryContrast
from hicl_d2.contrast.peers.region import RegionContrast

__all__ = [
    "PEERS",
    "ContextualContrast",
    "MultiScaleContrast",
    "PixelContrast",
    "PixelMemoryContrast",
    "RegionContrast",
]

PEERS: dict[str, type[Contrast]] = {
    "pixel": PixelContrast,
    "pixel_memory": PixelMemoryContrast,
    "multiscale": MultiScaleContrast,
    "region": RegionContrast,
    "contextual": ContextualContrast,
}
