"""Where a cell runs: machine, code and packages, for its manifest."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@cache
def environment() -> dict[str, Any]:
    """Return the machine, the commit and whether it was changed, and the versions of all packages."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version(), **dict(sorted(packages.items()))},
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [f"{name}, {memory:.0f} GiB" for _, name, memory in visible_gpus()],
        },
    }


@cache
def git_state() -> dict[str, Any]:
    """Return the commit that the code is of and whether it was changed; None where nobody knows."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def visible_gpus() -> list[tuple[int, str, float]]:
    """Return index, name and memory in GiB of the GPUs that CUDA_VISIBLE_DEVICES lets this process use."""
    query = _output("nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")
    found = []
    for line in (query or "").splitlines():
        index, name, memory = (word.strip() for word in line.split(","))
        found.append((int(index), name, float(memory) / 1024))
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return found
    return [gpu for gpu in found if str(gpu[0]) in allowed.replace(" ", "").split(",")]


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
