"""Reading a tensor on its way through a model that knows nothing of it: taps on modules found by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.errors import InputError, listing, nearest

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
