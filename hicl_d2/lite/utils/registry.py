"""Registries of named classes and functions, fvcore's own."""

from fvcore.common.registry import Registry

__all__ = ["Registry"]
