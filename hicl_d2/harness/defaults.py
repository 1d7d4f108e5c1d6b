"""The defaults of the training's config, which enter a cell's identity.

Without Detectron2 they are read in this process. Detectron2's config package imports torch: there another process reads
them, once for each state of the code, and the answer is kept in the user's cache folder.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hicl_d2.command.checksums import cache_folder
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import write_text
from hicl_d2.harness import ROOT

CACHE_FILE = "defaults.json"
CODE = Path(__file__).resolve().parents[1]
# Files of Detectron2, below its package, that hold defaults.
DETECTRON2_FILES = ("config/defaults.py", "projects/deeplab/config.py")
READ = "import json; from hicl_d2.config import flat_defaults; print(json.dumps(flat_defaults()))"


@cache
def defaults() -> Mapping[str, Any]:
    """Return every config key of the training with its default, flat. Raises InputError if they cannot be read."""
    spec = find_spec("detectron2") if os.environ.get("HICL_RUNTIME") != "lite" else None
    if spec is None:
        from hicl_d2.config import flat_defaults

        return flat_defaults()
    path = cache_folder() / CACHE_FILE
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["code"] == code_digest() and isinstance(content["defaults"], dict):
            return content["defaults"]
    found = _read_elsewhere()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"code": code_digest(), "defaults": found}) + "\n")
    return found


def _read_elsewhere() -> dict[str, Any]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, env=variables, check=False
    )
    try:
        content = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        content = None
    if done.returncode or not isinstance(content, dict):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise InputError(f"the defaults of the config cannot be read under Detectron2: {last.strip()}")
    return content


@cache
def code_digest() -> str:
    """Return digits that change with the project's code and with Detectron2's defaults."""
    total = hashlib.sha256(sys.executable.encode())
    for file in _code_files():
        with suppress(OSError):
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def _code_files() -> Iterator[Path]:
    yield from sorted(CODE.rglob("*.py"))
    spec = find_spec("detectron2")
    if spec is not None and spec.origin and os.environ.get("HICL_RUNTIME") != "lite":
        origin = Path(spec.origin)
        yield from (origin.parent / name for name in ("__init__.py", *DETECTRON2_FILES))
