"""What stands behind the door where Detectron2 is not installed: a small runtime for semantic segmentation.

It holds what this project and its documented interface use, under Detectron2's import paths, names, config keys, file
formats and figures, written from their public documentation on fvcore, iopath, yacs and torch. ``tests/d2`` checks that
everything here is used, ``tests/conformance`` that it does what Detectron2's does.
"""

INSTALL_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def needs_detectron2(what: str) -> str:
    """Return the sentence for something that this runtime leaves to Detectron2."""
    return f"{what}: this needs Detectron2, which is not in use here; to install it see {INSTALL_GUIDE}"
