"""What stands behind the door where Detectron2 is not installed: a small runtime for semantic segmentation.

It has Detectron2's import paths, names, signatures, config keys, file formats and figures for what this
project uses, written from their public documentation on fvcore, iopath, yacs and torch, and nothing more.
``tests/conformance`` compares the two.
"""

from collections.abc import Callable
from typing import Any

INSTALL_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def needs_detectron2(what: str) -> str:
    """Return the sentence for something that this runtime leaves to Detectron2."""
    return f"{what}: this needs Detectron2, which is not in use here; to install it see {INSTALL_GUIDE}"


def beyond_lite(module: str, names: str) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for ``module`` that answers ``names`` (space-separated) with an ImportError.

    Detectron2 offers these names in its module of the same path; any other name is unknown as usual.
    """
    known = frozenset(names.split())

    def missing(name: str) -> Any:
        if name in known:
            raise ImportError(needs_detectron2(f"{module.removeprefix(__name__ + '.')}.{name}"))
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing
