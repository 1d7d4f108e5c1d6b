"""Where a cell runs: machine, code and packages, for its manifest."""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hicl_d2.command.git import git_state


@cache
def environment() -> dict[str, Any]:
    """Return the machine, the commit and whether it was changed, and the versions of all packages."""
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version(), **installed_packages()},
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [f"{name}, {memory:.0f} GiB" for _, name, memory in visible_gpus()],
        },
    }


def installed_packages() -> dict[str, str]:
    """Return the versions of all packages, by the names of their folders, since reading every metadata file is slow."""
    found: dict[str, str] = {}
    for place in sys.path:
        for path in Path(place or ".").glob("*.dist-info"):
            name, _, version = path.stem.rpartition("-")
            found.setdefault(name.lower(), version)
    return dict(sorted(found.items()))


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
