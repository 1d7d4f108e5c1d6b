"""How the windows of a level are composed of the windows of a smaller one, so that no cell is read once per level."""

from collections.abc import Sequence
from typing import NamedTuple

from hicl_d2.contrast.levels import Level

__all__ = ["Link", "link_levels"]


class Link(NamedTuple):
    """Tell how a level's windows are composed of the windows of a smaller level.

    Attributes:
        parent: index of the smaller level; -1 for the cells themselves.
        pick: take every ``pick``-th window of the parent, so that those taken tile the map.
        factor: how many of them lie along a window's side.
        stride: how many lie between the start of a window and the start of the next.
    """

    parent: int
    pick: int
    factor: int
    stride: int


def link_levels(levels: Sequence[Level]) -> tuple[Link, ...]:
    """Link each level to the largest smaller one whose windows tile its own, or to the cells."""
    links = []
    for k, level in enumerate(levels):
        link = Link(-1, 1, level.window, level.step)
        for parent in range(k - 1, -1, -1):
            size, step = levels[parent].window, levels[parent].step
            if level.window % size == 0 and level.step % size == 0 and size % step == 0:
                link = Link(parent, size // step, level.window // size, level.step // size)
                break
        links.append(link)
    return tuple(links)
