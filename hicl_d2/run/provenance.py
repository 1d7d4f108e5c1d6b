"""What a result came from: versions and device."""

import platform

import torch

from hicl_d2.d2 import RUNTIME
from hicl_d2.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of the project, torch, Python and the runtime."""
    return {
        "hicl_d2": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "runtime": RUNTIME,
    }


def device_name(device: str) -> str:
    """Return what ``device`` (a torch device) is: "NVIDIA H200", or "cpu (x86_64, 2 threads)"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
