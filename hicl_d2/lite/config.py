"""The tree of config keys, and construction of objects from it.

``CfgNode`` is fvcore's, with files opened through the runtime's path manager and a check of ``VERSION``.
Unlike Detectron2's it reads YAML safely unless told otherwise.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import IO, Any

import fvcore.common.config

from hicl_d2.command.errors import InputError
from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.defaults import DETECTION, SEGMENTATION
from hicl_d2.lite.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg"]


class CfgNode(fvcore.common.config.CfgNode):
    """A config tree with ``_BASE_`` files, overrides from a list, freezing and dumping."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str] | IO[bytes]:
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and the files it is based on; ``allow_unsafe`` lets its tags run code.

        Raises InputError for a file that does not exist or whose VERSION is another than this tree's.
        """
        if not PathManager.isfile(cfg_filename):
            raise InputError(f"config file {cfg_filename} does not exist")
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION", self.VERSION)
        if version != self.VERSION:
            what = f"{cfg_filename}: a config of VERSION {version} (here it is {self.VERSION})"
            raise InputError(needs_detectron2(what))
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """Return a fresh config with every key of Detectron2 at its default."""
    return _join(CfgNode(copy.deepcopy(SEGMENTATION)), CfgNode(copy.deepcopy(DETECTION)))


def _join(into: CfgNode, other: CfgNode) -> CfgNode:
    for key, value in other.items():
        into[key] = _join(into[key], value) if key in into else value
    return into


def configurable(
    init_func: Callable[..., Any] | None = None, *, from_config: Callable[..., Any] | None = None
) -> Any:
    """Decorate ``__init__`` or a function so that it can also be called with a config.

    ``@configurable`` on ``__init__`` uses the classmethod ``from_config(cfg, ...)`` of the class;
    ``@configurable(from_config=...)`` on a function uses the one given. A call whose first or ``cfg`` argument is a
    config takes its arguments from the dictionary that ``from_config`` returns. Keyword arguments that ``from_config``
    has too are passed to it; the others override what it returns.

    Raises AttributeError or TypeError without a usable ``from_config``, AssertionError for a misuse of the decorator.
    """
    if init_func is not None:
        is_init = inspect.isfunction(init_func) and init_func.__name__ == "__init__"
        if not is_init or from_config is not None:
            raise AssertionError("Incorrect use of @configurable: bare, it goes on __init__ alone")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    assert inspect.isfunction(from_config), "from_config argument of configurable must be a function!"
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        complaint = "Class with @configurable must have a 'from_config' classmethod."
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError(complaint)
        if not inspect.ismethod(from_config):
            raise TypeError(complaint)
        if _has_cfg(args, kwargs):
            init(self, **_explicit_arguments(from_config, args, kwargs))
        else:
            init(self, *args, **kwargs)

    return wrapped


def _configurable_function(
    function: Callable[..., Any], from_config: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _has_cfg(args, kwargs):
            return function(**_explicit_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]
    return wrapped


def _has_cfg(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    candidates = [*args[:1], kwargs.get("cfg")]
    return any(isinstance(candidate, fvcore.common.config.CfgNode) for candidate in candidates)


def _explicit_arguments(
    from_config: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as the first argument!")
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    passed = {name: value for name, value in kwargs.items() if takes_any or name in parameters}
    overrides = {name: value for name, value in kwargs.items() if name not in passed}
    return {**from_config(*args, **passed), **overrides}
