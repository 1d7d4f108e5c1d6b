"""A description of the machine and the libraries, for the log and for reports of faults."""

import platform
import sys
from importlib import metadata

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_LIBRARIES = ("numpy", "pillow", "fvcore", "iopath", "yacs", "transformers", "scipy", "pandas")


def collect_env_info() -> str:
    """Return a table of platform, versions and devices, followed by torch's build settings."""
    rows = [
        ("sys.platform", sys.platform),
        ("Python", platform.python_version()),
        ("runtime", "lite (Detectron2 is not in use)"),
        ("PyTorch", torch.__version__),
        ("CPU threads", str(torch.get_num_threads())),
        ("GPU available", "Yes" if torch.cuda.is_available() else "No"),
        *((f"GPU {index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())),
        *((name, _version(name)) for name in _LIBRARIES),
    ]
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


def _version(name: str) -> str:
    """Return a library's version without importing it (some take seconds)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
