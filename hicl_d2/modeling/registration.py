"""Registering models in Detectron2's registries, so that another project may register the same name."""

from collections.abc import Callable
from typing import Any

from hicl_d2.d2.utils import Registry

# Objects of ours by registry (its id) and name; another project's registration of the name replaces them.
_fallbacks: dict[int, dict[str, Any]] = {}


def register_over_detectron2(registry: Registry, made: Callable[..., Any], name: str = "") -> None:
    """Register ``made`` as :func:`register_if_free` does, and replace an object of that name that is Detectron2's own."""
    name = name or made.__name__
    if name in registry and registry.get(name).__module__.startswith("detectron2."):
        del registry._obj_map[name]
    register_if_free(registry, made, name)


def register_if_free(registry: Registry, made: Callable[..., Any], name: str = "") -> None:
    """Register ``made`` under ``name`` (its own by default) unless the name is taken.

    If another project registers the name later, its object replaces ``made`` instead of raising an error.
    """
    name = name or made.__name__
    if name in registry:
        return
    registry._do_register(name, made)
    if id(registry) not in _fallbacks:
        _fallbacks[id(registry)] = {}
        _let_others_replace(registry, _fallbacks[id(registry)])
    _fallbacks[id(registry)][name] = made


def _let_others_replace(registry: Registry, fallbacks: dict[str, Any]) -> None:
    plain = registry._do_register

    def register(name: str, made: Any) -> None:
        if name in fallbacks and registry._obj_map.get(name) is fallbacks[name]:
            del registry._obj_map[name], fallbacks[name]
        plain(name, made)

    registry._do_register = register
