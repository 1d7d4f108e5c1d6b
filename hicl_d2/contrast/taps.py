"""Reading a tensor on its way through a model that knows nothing of it: hooks on modules found by name."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SIDES", "Tap", "channels_of", "find_module", "reading", "run_blank"]

SIDES = ("input", "output")
# Names that an error lists before it counts the rest.
_LISTED = 12
# At most so many modules of the wanted last name are offered.
_MEANT = 3
# Modules that pass on as many channels as they take.
_PASSING = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Dropout,
    nn.Dropout2d,
)


class Tap:
    """Keep the tensor that goes into, or comes out of, one module while the tap is armed.

    A forward hook (registered ``with_kwargs``) that only stores a reference: a recomputation under gradient
    checkpointing saves the same tensors with the tap armed or not. An object and not a closure, so that a deep copy of
    the model gets taps of its own. What a tap holds is neither copied nor pickled.
    """

    armed: bool
    calls: int
    value: Any

    def __init__(self, name: str, side: str) -> None:
        """Make a tap for the ``side`` ("input" or "output") of the module called ``name``."""
        if side not in SIDES:
            raise ValueError(f"the side of {name} must be input or output, not {side!r}")
        self.name = name
        self.side = side
        self.armed, self.calls, self.value = False, 0, None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.armed:
            self.calls += 1
            self.value = output if self.side == "output" else next(iter((*args, *kwargs.values())), None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "armed": False, "calls": 0, "value": None}

    def arm(self) -> None:
        """Forget what was seen, and keep what passes from now on."""
        self.clear()
        self.armed = True

    def clear(self) -> None:
        """Forget what was seen, and see nothing more."""
        self.armed, self.calls, self.value = False, 0, None

    def take(self) -> Any:
        """Return what was seen in the forward since the tap was armed, and forget it.

        Raises RuntimeError if the module was not called, or was called several times.
        """
        value, calls = self.value, self.calls
        self.clear()
        if calls == 0:
            raise RuntimeError(
                f"the module {self.name} was not called in this training step, so the contrast has nothing to read; name "
                "a module that the model calls itself in every training step"
            )
        if calls > 1:
            raise RuntimeError(
                f"the module {self.name} was called {calls} times in one forward, and one feature map is read; name a "
                "module that is called once, such as the one that it is part of"
            )
        return value

    def as_map(self, value: Any, grid: tuple[int, int] | None = None) -> Tensor:
        """Return what was seen as a (B, C, h, w) tensor; a token sequence (B, N, C) is laid over ``grid`` (h, w).

        Raises RuntimeError if it is neither.
        """
        if isinstance(value, Tensor) and value.dim() == 4:
            return value
        is_tensor = isinstance(value, Tensor)
        if is_tensor and value.dim() == 3 and grid is not None:
            if value.shape[1] == grid[0] * grid[1]:
                return value.unflatten(1, grid).permute(0, 3, 1, 2)
            raise RuntimeError(
                f"the {self.side} of the module {self.name} has {value.shape[1]} tokens, but a grid of {grid[0]} x {grid[1]} "
                f"holds {grid[0] * grid[1]}; give the grid of these images, and name a module without class tokens"
            )
        found = str(tuple(value.shape)) if is_tensor else type(value).__name__
        hint = (
            "; for a token sequence (B, N, C) give its grid (h, w)" if is_tensor and value.dim() == 3 else ""
        )
        raise RuntimeError(
            f"the {self.side} of the module {self.name} must be a (B, C, h, w) tensor, not {found}{hint}"
        )


@contextmanager
def reading(model: nn.Module, taps: Iterable[Tap]) -> Iterator[None]:
    """Put ``taps`` on the modules of ``model`` and let them see what passes inside the block; it stays in them."""
    taps = list(taps)
    handles = [find_module(model, tap.name).register_forward_hook(tap, with_kwargs=True) for tap in taps]
    for tap in taps:
        tap.arm()
    try:
        yield
    finally:
        for tap, handle in zip(taps, handles, strict=True):
            tap.armed = False
            handle.remove()


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module called ``name``; raise ValueError with the modules that it could have been."""
    modules = dict(model.named_modules(remove_duplicate=False))
    del modules[""]
    if name and name in modules:
        return modules[name]
    parent = name
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    children = sorted(
        n for n in modules if n.startswith(prefix) and n != parent and n[len(prefix) :].count(".") == 0
    )
    shown = ", ".join(children[:_LISTED]) or "none"
    rest = f" and {len(children) - _LISTED} more" if len(children) > _LISTED else ""
    last = name.rpartition(".")[2]
    close = [n for n in modules if n.rpartition(".")[2] == last and n.startswith(prefix)]
    if not 0 < len(close) <= _MEANT:
        close = difflib.get_close_matches(name, list(modules), n=1, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"{type(model).__name__} has no module {name!r}{hint}; "
        f"candidates below {parent or 'the model'}: {shown}{rest}"
    )


def channels_of(module: nn.Module, side: str) -> int | None:
    """Return the channels on the ``side`` of a convolution, linear layer or norm, or of a sequence of such.

    None where the module does not tell.
    """
    if isinstance(module, nn.Sequential):
        children = list(module) if side == "input" else list(module)[::-1]
        first = next((child for child in children if not isinstance(child, _PASSING)), None)
        return None if first is None else channels_of(first, side)
    names = ("in_channels", "in_features") if side == "input" else ("out_channels", "out_features")
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        return next((getattr(module, name) for name in names if hasattr(module, name)), None) or None
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.num_features or None
    if isinstance(module, nn.LayerNorm):  # over the last axis of tokens (B, N, C)
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    return module.num_channels if isinstance(module, nn.GroupNorm) else None


def run_blank(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Call ``model`` once in eval mode and without gradients.

    Neither parameters, statistics, random state nor the mode of any module change.
    """
    was_training, modes = model.training, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*args, **kwargs)
    finally:
        model.train(was_training)  # first as a whole: a model may pass its mode on to what is no child of it
        for module, was_training in modes:
            module.training = was_training
