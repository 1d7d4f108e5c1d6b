"""The one door to Detectron2.

Each module of this package is a list of names taken from ``detectron2`` where it is installed, and otherwise
from :mod:`hicl_d2.lite`, which offers the same names, signatures, config keys, file formats and figures for
semantic segmentation. The choice is made here, once: mixing the two would give two config classes and two
registries that do not know each other.

The lists hold what this project uses, and a few names for code of your own that is to run with either:
``utils.EventStorage`` (a training loop of your own), ``transforms.AugInput``, ``RandomCrop`` and ``RandomFlip`` (a mapper of
your own).
"""

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from hicl_d2.lite import INSTALL_GUIDE


def _choose() -> bool:
    """Return whether Detectron2 is used; ``HICL_RUNTIME`` forces the answer."""
    wish = os.environ.get("HICL_RUNTIME", "")
    if wish not in ("", "lite", "detectron2"):
        raise ImportError(f"HICL_RUNTIME is {wish!r}; it must be lite or detectron2, or be unset")
    installed = importlib.util.find_spec("detectron2") is not None
    if wish == "detectron2" and not installed:
        raise ImportError(f"HICL_RUNTIME=detectron2, but Detectron2 is not installed; see {INSTALL_GUIDE}")
    return installed and wish != "lite"


def _commit(package_file: str) -> str:
    """Return what ``package_file`` comes from: a short git commit, "local copy" (of a folder) or "release"."""
    file = Path(package_file)
    try:
        # An installed package may lie inside another project's repository, which does not track it.
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "rev-parse", "--short=7", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return _installed_commit(file.parent)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _installed_commit(package: Path) -> str:
    """Return what pip recorded when it installed ``package``: the short commit of a repository, or of a checkout.

    A checkout may have moved on since: its commit is returned if the installed modules are those of that commit, else
    "local copy". Without a record of either it is "release".
    """
    try:
        record = json.loads(metadata.distribution("detectron2").read_text("direct_url.json") or "{}")
        if "vcs_info" in record:
            return str(record["vcs_info"]["commit_id"])[:7]
        url = urlparse(record["url"])
    except (metadata.PackageNotFoundError, KeyError, TypeError, ValueError):
        return "release"
    return _commit_of_copy(package, Path(unquote(url.path))) if url.scheme == "file" else "release"


def _commit_of_copy(package: Path, checkout: Path) -> str:
    try:
        commit = _git(checkout, "rev-parse", "--short=7", "HEAD")
        listed = _git(checkout, "ls-tree", "-r", "-z", "HEAD", f"{package.name}/").rstrip("\0").split("\0")
        for blob, name in (line.split("\t") for line in listed):
            if name.endswith(".py") and blob.split()[-1] != _git_hash(package.parent / name):
                return "local copy"
    except (OSError, ValueError, subprocess.SubprocessError):
        return "local copy"
    return commit


def _git_hash(file: Path) -> str:
    """Return the name that git gives to the content of ``file``."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _describe() -> str:
    """Return the runtime's name and version; a broken Detectron2 raises instead of falling back."""
    if not USES_DETECTRON2:
        return "lite"
    try:
        package = importlib.import_module("detectron2")
        importlib.import_module("detectron2.modeling")
    except Exception as error:
        raise ImportError(
            f"Detectron2 is installed but cannot be imported ({type(error).__name__}: {error}); "
            f"repair it ({INSTALL_GUIDE}) or set HICL_RUNTIME=lite to run without it"
        ) from error
    return f"detectron2 {package.__version__} ({_commit(str(package.__file__))})"


USES_DETECTRON2: bool = _choose()
RUNTIME: str = _describe()

__all__ = ["INSTALL_GUIDE", "RUNTIME", "USES_DETECTRON2"]
