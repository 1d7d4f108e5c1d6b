"""Reading a tensor on its way through a model that knows nothing of it: taps on modules found by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.modeling.predictions import class_logits, is_of_queries

SIDES = ("input", "output")


class Tap:
    """Keeps the tensor that goes into, or comes out of, one module while it is armed.

    An object and not a closure, so that a deep copy of the model (an averaged copy, say) gets taps of its own.
    """

    def __init__(self, name: str, side: str) -> None:
        self.name = name
        self.side = side
        self.armed = False
        self.value: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.armed:
            self.value = output if self.side == "output" else next(iter((*args, *kwargs.values())), None)

    def take(self) -> Any:
        """Return what was seen since the tap was armed, and forget it.

        Raises RuntimeError if the module was not called.
        """
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError(
                f"the module {self.name} was not called in this training step, so Hi-CL has nothing to read; name a module "
                "that the base model calls itself (MODEL.HICL.FEATURE, LOGITS, IMAGE)"
            )
        return value

    def check(self, value: Any) -> Tensor:
        """Return ``value``; raises RuntimeError if what passed is no (B, C, h, w) tensor."""
        if not isinstance(value, Tensor) or value.dim() != 4:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RuntimeError(
                f"the {self.side} of the module {self.name} must be a (B, C, h, w) tensor, not {found}"
            )
        return value


def add_tap(model: nn.Module, name: str, side: str, key: str) -> Tap:
    """Put a tap on the module ``name`` of ``model``; ``key`` is the config key that named it.

    Raises InputError with the candidates if there is no such module.
    """
    if side not in SIDES:
        raise InputError(f"{key}_SIDE must be input or output, not {side!r}")
    tap = Tap(name, side)
    find_module(model, name, key).register_forward_hook(tap, with_kwargs=True)
    return tap


def find_module(model: nn.Module, name: str, key: str) -> nn.Module:
    """Return the module called ``name``, or raise InputError with the modules that it could have been."""
    modules = dict(model.named_modules())
    if name and name in modules:
        return modules[name]
    parent = name
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    children = [
        n for n in modules if n.startswith(prefix) and n != parent and n[len(prefix) :].count(".") == 0
    ]
    raise InputError(
        f"{key}: {type(model).__name__} has no module {name!r}{nearest(name, modules)}; "
        f"candidates below {parent or 'the model'}: {listing(children) or 'none'}"
    )


@contextmanager
def armed(taps: dict[str, Tap]) -> Iterator[None]:
    """Let ``taps`` see what passes, for the duration of one forward."""
    for tap in taps.values():
        tap.armed, tap.value = True, None
    try:
        yield
    finally:
        for tap in taps.values():
            tap.armed = False


def feature_channels(model: nn.Module, tap: Tap, size: tuple[int, int]) -> int:
    """Return the channels of what ``tap`` sees: asked of a convolution, else found by one forward on a blank image.

    ``size`` is height and width of an image that suits the model.
    """
    module = model.get_submodule(tap.name)
    if isinstance(module, nn.Conv2d):
        return module.in_channels if tap.side == "input" else module.out_channels
    with armed({"feature": tap}):
        run_on_blank_image(model, size)
    return tap.check(tap.take()).shape[1]


def run_on_blank_image(model: nn.Module, size: tuple[int, int]) -> None:
    """Run ``model`` on one black image of ``size``, in eval mode and without gradients.

    Neither parameters, statistics nor random state change.
    """
    was_training = model.training
    model.eval()
    height, width = size
    blank = {"image": torch.zeros(3, height, width), "height": height, "width": width}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model([blank])
    finally:
        model.train(was_training)


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
    handles = []
    for key, tap in taps.items():
        handles += [
            names[key[0]].register_forward_hook(tap, with_kwargs=True),
            names[key[0]].register_forward_hook(lambda *_, key=key: order.append(key)),
        ]
    try:
        with armed({f"{name} {side}": tap for (name, side), tap in taps.items()}):
            run_on_blank_image(model, size)
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
    made = is_of_queries(tap.value)
    value = class_logits(tap.value)
    if not isinstance(value, Tensor) or value.dim() != 4 or len(value) != 1 or 1 in value.shape[-2:]:
        return None
    stride = round(size[0] / value.shape[-2])
    if stride == 1 and tap.side == "input":  # the image itself
        return None
    return Place(tap.name, tap.side, value.shape[1], stride, made)
