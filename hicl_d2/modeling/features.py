"""Where in a model the branch could read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.contrast.taps import Tap, reading, run_blank
from hicl_d2.modeling.predictions import class_logits, is_of_queries


def blank_batch(size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return a batch of one black image of ``size`` (height, width), as meta-architectures take it."""
    height, width = size
    return [{"image": torch.zeros(3, height, width), "height": height, "width": width}]


@dataclass(frozen=True)
class Place:
    """One side of a module that passes maps of ``channels`` channels at ``stride`` pixels per cell."""

    module: str
    side: str
    channels: int
    stride: int
    # Whether the module gives something else, of which the model makes class logits.
    is_made_of_predictions: bool = False


def list_places(model: nn.Module, size: tuple[int, int]) -> list[Place]:
    """Return the places of ``model`` that a tap can read, in the order in which an image of ``size`` passes them.

    Of a backbone the stages alone are listed, of nested modules that pass the same map the outermost.
    """
    names = {
        name: module
        for name, module in model.named_modules()
        if name and _is_shown(name) and next(module.parameters(), None) is not None
    }
    taps = {(name, side): Tap(name, side) for name in names for side in ("input", "output")}
    order: list[tuple[str, str]] = []
    handles = [names[key[0]].register_forward_hook(lambda *_, key=key: order.append(key)) for key in taps]
    try:
        with reading(model, taps.values()):
            run_blank(model, blank_batch(size))
    finally:
        for handle in handles:
            handle.remove()
    places: dict[int, Place] = {}
    for key in sorted(dict.fromkeys(order), key=lambda key: (order.index(key), key[0].count("."))):
        place = _place(taps[key], size)
        # The outermost module comes last: it is left when the modules in it are.
        if place is not None and not (place.is_made_of_predictions and id(taps[key].value) in places):
            places[id(taps[key].value)] = place
    return list(places.values())


def _is_shown(name: str) -> bool:
    parts = name.split(".")
    return len(parts) <= 2 if parts[0] == "backbone" else len(parts) <= 4


def _place(tap: Tap, size: tuple[int, int]) -> Place | None:
    if tap.calls != 1:  # of several maps in one forward, none can be read
        return None
    made = is_of_queries(tap.value)
    value = class_logits(tap.value)
    if not isinstance(value, Tensor) or value.dim() != 4 or len(value) != 1 or 1 in value.shape[-2:]:
        return None
    stride = round(size[0] / value.shape[-2])
    if stride == 1 and tap.side == "input":  # the image itself
        return None
    return Place(tap.name, tap.side, value.shape[1], stride, made)
