"""Record golden figures from the installed Detectron2: ``python -m tests.conformance.record ROOM [ROOM ...]``.

For each room, ``tests/conformance/test_<room>.py`` defines ``figures(runtime)``; what it returns for ``"detectron2"``
is written to ``golden/<room>.json``. Figures alone are kept, never code.
"""

import importlib
import json
import sys

from hicl_d2.d2 import RUNTIME
from tests.conformance.runtimes import GOLDEN, plain


def record(room: str) -> None:
    """Write the real Detectron2's figures for ``room``."""
    module = importlib.import_module(f"tests.conformance.test_{room}")
    content = {"detectron2": RUNTIME, "figures": plain(module.figures("detectron2"))}
    (GOLDEN / f"{room}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(name)
