"""The contrasts by name, built from one set of settings."""

import inspect
from collections.abc import Callable, KeysView, Mapping
from typing import Any

from hicl_d2.contrast.branch import HiCLBranch
from hicl_d2.contrast.frame import Contrast
from hicl_d2.contrast.peers import PEERS

__all__ = [
    "CONTRASTS",
    "build_contrast",
    "defaults_of",
    "register_contrast",
    "registered_defaults",
    "settings_of",
]

_CLASSES: dict[str, type[Contrast]] = {"hicl": HiCLBranch, **PEERS}
_BUILT_IN = frozenset(_CLASSES)

# The names of all contrasts, those that are registered later included.
CONTRASTS: KeysView[str] = _CLASSES.keys()


def register_contrast(name: str) -> Callable[[type[Contrast]], type[Contrast]]:
    """Make a contrast of your own known under ``name``; a decorator of its class.

    `build_contrast` and `attach` then take the name, and so does MODEL.HICL.CONTRAST, whose other keys gain the keywords of
    the class, in upper case.

    Examples:
        >>> import torch
        >>> from hicl_d2.contrast import Contrast, build_contrast, register_contrast
        >>> @register_contrast("pull_together")
        ... class PullTogether(Contrast):
        ...     def __init__(self, in_channels, num_classes, *, margin=0.5, **shared):
        ...         super().__init__(in_channels, num_classes, **shared)
        ...         self.margin = margin
        ...     def contrast(self, features, grid, logits, generator):
        ...         rows = self.embedding(features.mean(dim=(2, 3)).to(self.compute_dtype))
        ...         return (self.margin - rows @ rows.T).relu().mean(), {}
        >>> build_contrast("pull_together", 8, 5, margin=0.2).margin
        0.2

    Raises ValueError for a name that is taken, for a class that is no `Contrast`, and for a keyword without a default.
    """

    def register(contrast: type[Contrast]) -> type[Contrast]:
        if not (isinstance(contrast, type) and issubclass(contrast, Contrast)):
            raise ValueError(f"{contrast!r} is no contrast: derive its class from hicl_d2.contrast.Contrast")
        known = _CLASSES.get(name)
        # A module that is loaded again defines its class again.
        if known is not None and (known.__module__, known.__qualname__) != (
            contrast.__module__,
            contrast.__qualname__,
        ):
            raise ValueError(f"a contrast is called {name!r} already; there are {', '.join(CONTRASTS)}")
        missing = [key for key, value in defaults_of(contrast).items() if value is inspect.Parameter.empty]
        if missing:
            raise ValueError(f"{contrast.__name__}: the keyword {missing[0]} needs a default")
        _CLASSES[name] = contrast
        return contrast

    return register


def registered_defaults() -> Mapping[str, Any]:
    """Return the keywords, with their defaults, of the contrasts that `register_contrast` made known."""
    return {
        key: value
        for name, contrast in _CLASSES.items()
        if name not in _BUILT_IN
        for key, value in defaults_of(contrast).items()
    }


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
    return frozenset(defaults_of(contrast))


def defaults_of(contrast: type[Contrast]) -> dict[str, Any]:
    """Return those keywords with their defaults; ``inspect.Parameter.empty`` for one without."""
    defaults: dict[str, Any] = {}
    for base in contrast.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        own = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        defaults = {**own, **defaults}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return defaults
