"""Registries of named classes and functions, fvcore's own."""

from fvcore.common.registry import Registry

from hicl_d2.lite import beyond_lite

__all__ = ["Registry"]

__getattr__ = beyond_lite(__name__, "locate")
