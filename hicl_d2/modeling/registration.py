"""Entering models in Detectron2's registries beside those of other projects."""

from collections.abc import Callable
from typing import Any

from hicl_d2.d2.utils import Registry

# What stands in each registry until another project registers the name.
_fallbacks: dict[int, dict[str, Any]] = {}


def register_over_detectron2(registry: Registry, made: Callable[..., Any], name: str = "") -> None:
    """Register ``made`` as :func:`register_if_free` does, but in place of an object of Detectron2's own of that name."""
    name = name or made.__name__
    if name in registry and registry.get(name).__module__.startswith("detectron2."):
        del registry._obj_map[name]
    register_if_free(registry, made, name)


def register_if_free(registry: Registry, made: Callable[..., Any], name: str = "") -> None:
    """Register ``made`` under ``name`` (its own by default) unless the name is taken, and give way later.

    Where another project is imported too and registers the name, before or after, its object stands under it.
    """
    name = name or made.__name__
    if name in registry:
        return
    registry._do_register(name, made)
    if id(registry) not in _fallbacks:
        _fallbacks[id(registry)] = {}
        _make_way(registry, _fallbacks[id(registry)])
    _fallbacks[id(registry)][name] = made


def _make_way(registry: Registry, fallbacks: dict[str, Any]) -> None:
    plain = registry._do_register

    def register(name: str, made: Any) -> None:
        if name in fallbacks and registry._obj_map.get(name) is fallbacks[name]:
            del registry._obj_map[name], fallbacks[name]
        plain(name, made)

    registry._do_register = register
