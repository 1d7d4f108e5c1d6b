"""The contrasts by name, built from one set of settings."""

import inspect
from typing import Any

from hicl_d2.contrast.branch import HiCLBranch
from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.peers import PEERS

__all__ = ["CONTRASTS", "build_contrast", "settings_of"]

_CLASSES: dict[str, type[Contrast]] = {"hicl": HiCLBranch, **PEERS}

CONTRASTS = tuple(_CLASSES)


def build_contrast(name: str, in_channels: int, num_classes: int, **settings: Any) -> Contrast:
    """Build the contrast called ``name``, one of `CONTRASTS`.

    Settings are keywords of the contrast's class. One set of settings serves all contrasts: a keyword that only other
    contrasts take is ignored, such as the windows of Hi-CL for pixel contrast.

    Raises ValueError, listing the valid ones, for an unknown name and for a setting that no contrast takes.
    """
    if name not in _CLASSES:
        raise ValueError(f"no contrast is called {name!r}; there are {', '.join(CONTRASTS)}")
    known = frozenset[str]().union(*map(settings_of, _CLASSES.values()))
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"no contrast takes {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    contrast = _CLASSES[name]
    own = {key: value for key, value in settings.items() if key in settings_of(contrast)}
    return contrast(in_channels, num_classes, **own)


def settings_of(contrast: type[Contrast]) -> frozenset[str]:
    """Return the keywords that a contrast's class takes, with those that it passes on to its base classes."""
    names: set[str] = set()
    for base in contrast.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return frozenset(names)
