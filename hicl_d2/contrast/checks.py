"""Checks of what a contrast is made with: each raises ValueError in one line that names the setting."""

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["check_number", "check_whole"]


def check_whole(least: int, **values: Any) -> None:
    """Raise ValueError unless all ``values`` (by name) are whole numbers from ``least`` on."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")


def check_number(least: float, most: float = math.inf, **values: Any) -> None:
    """Raise ValueError unless all ``values`` (by name) are finite numbers from ``least`` to ``most``."""
    for name, value in values.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not (is_number and least <= value <= most and value != math.inf):
            end = "on" if most == math.inf else f"to {most:g}"
            raise ValueError(f"{name} must be a number from {least:g} {end}, not {value!r}")
