"""What a result came from: versions, commit, device."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hicl_d2.d2 import RUNTIME
from hicl_d2.version import __version__

PROJECT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Return the versions of the project, torch, Python and the runtime."""
    return {
        "hicl_d2": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "runtime": RUNTIME,
    }


def git_state() -> dict[str, Any]:
    """Return the commit that the code was run from and whether it was changed; None where nobody knows."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    if not (PROJECT / ".git").exists():  # an installed package must not report a repository around it
        return None
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """Return what ``device`` (a torch device) is: "NVIDIA H200", or "cpu (x86_64, 2 threads)"."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
