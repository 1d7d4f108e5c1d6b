"""The commit that the code was run from."""

import subprocess
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 30


def git_state() -> dict[str, Any]:
    """Return the commit that the code is of and whether it was changed; None where nobody knows.

    Only the project's own repository is asked: an installed package must not report one that happens to be around it.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    if not (PROJECT / ".git").exists():
        return None
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
