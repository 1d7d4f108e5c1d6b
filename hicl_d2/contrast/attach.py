"""Attaching a contrast to a model that knows nothing of it, by the name of a module."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hicl_d2.contrast.attachment import NAME, Attachment, find_images
from hicl_d2.contrast.balance import KINDS, GradientBalance
from hicl_d2.contrast.build import build_contrast
from hicl_d2.contrast.checks import check_number, check_whole
from hicl_d2.contrast.frame import Contrast, generator_seed
from hicl_d2.contrast.grid import infer_stride
from hicl_d2.contrast.taps import Tap, channels_of, find_module, reading, run_blank

__all__ = ["attach", "strip"]

# What wrappers put before the names of a model's tensors: DistributedDataParallel and averaged copies, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# In the state of every contrast: its count of steps.
_MARK = f"{NAME}.steps"
# Sides of the windows in image pixels: those of the default windows at stride 4.
_WINDOW_PIXELS = (4, 8, 16, 32)


def attach(
    model: nn.Module,
    *,
    feature: str,
    num_classes: int,
    side: str = "input",
    logits: str | None = None,
    to_logits: Callable[[Any], Tensor] | None = None,
    image: str | None = None,
    in_channels: int | None = None,
    grid: tuple[int, int] | None = None,
    example: Any = None,
    stride: int | None = None,
    contrast: str = "hicl",
    weight: float = 0.1,
    weight_of: str = "loss",
    start_iter: int = 0,
    warmup_iters: int = 0,
    seed: int = 0,
    **settings: Any,
) -> Contrast:
    """Attach a contrast to ``model``, in place, and return it: the model's new child ``hicl``.

    The model keeps its class, outputs and checkpoint keys; `state_dict`, the optimizer, ``.to()``, copies and
    DistributedDataParallel see the contrast's parameters like any others. Attach before the optimizer is made and before
    the model is compiled or wrapped (DistributedDataParallel with its default find_unused_parameters=False: the loss is
    computed beside its forward). In eval mode nothing is captured. Take the contrast off (`Contrast.detach`) before
    torch.jit.script, which cannot read hooks.

    Examples:
        >>> import torch
        >>> from hicl_d2.contrast import attach, strip
        >>> class Segmentor(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone = torch.nn.Conv2d(3, 32, kernel_size=3, stride=4, padding=1)
        ...         self.classifier = torch.nn.Conv2d(32, 5, kernel_size=1)
        ...     def forward(self, images):
        ...         scores = self.classifier(self.backbone(images).relu())
        ...         return torch.nn.functional.interpolate(scores, scale_factor=4.0, mode="bilinear")
        >>> model = Segmentor()
        >>> images, labels = torch.randn(2, 3, 64, 64), torch.arange(4).repeat_interleave(16).expand(2, 64, 64)
        >>> branch = attach(model, feature="classifier", logits="classifier", num_classes=5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> for step in range(3):
        ...     loss = torch.nn.functional.cross_entropy(model(images), labels) + branch.loss(labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> branch.steps
        3
        >>> sorted(strip(model.state_dict())) == sorted(branch.detach().state_dict())
        True

    Args:
        model: any module that is called with a batch of images.
        feature: name of the module that the per-pixel features (B, C, h, w) go into, or come out of; see ``side``.
        num_classes: K; labels are 0 to K - 1.
        side: which side of that module is read, "input" or "output".
        logits: name of the module whose output is the class logits (B, K, h', w'), for confidence and hard anchors;
            None does without.
        to_logits: makes logits (B, K, h', w') of what that module gives, where it is something else. A function of a
            module (no lambda) if the model is to be pickled.
        image: name of the module whose input is the batch of images, where the model is called with something else.
        in_channels: C; by default asked of the module if it is a convolution, linear layer or norm, else found by one
            blank forward of ``example``.
        grid: (h, w) of features that are token sequences (B, h * w, C).
        example: what the model is called with: a tensor or list as its one argument, a tuple as its arguments, a dict as
            its keyword arguments. Used for one forward in eval mode, which changes nothing.
        stride: image pixels per cell of the features, for ``windows="auto"``; by default found with ``example``.
        contrast: name of the contrast, one of `CONTRASTS`.
        weight: of the loss, after the ramp.
        weight_of: "loss": the weight multiplies the contrast. "gradient": the contrast is multiplied so that its gradient at
            the features has ``weight`` times the norm of that of the other losses (`GradientBalance`), which have to be
            computed from the same features, and summed with it before ``backward()``.
        start_iter: calls of `Contrast.loss` before the contrast starts.
        warmup_iters: calls over which its weight then rises linearly from 0.
        seed: of the initial parameters and of what is drawn; the global random state is left alone.
        settings: keywords of the contrast (`build_contrast`), such as ``ignore_value``. ``windows="auto"`` makes windows
            of 4, 8, 16 and 32 image pixels whatever the stride: those of the defaults at stride 4.

    Raises ValueError, naming the nearest, for a module that does not exist; for a model that has a contrast already, is
    compiled, wrapped or scripted, or is an nn.Sequential; for values out of range; and where channels or stride cannot be
    found.
    """
    _check_model(model)
    check_settings(weight, weight_of, start_iter, warmup_iters, seed, grid, stride)
    taps = {"feature": _make_tap(model, "feature", feature, side)}
    if logits is not None:
        taps["logits"] = _make_tap(model, "logits", logits, "output")
        check_whole(1, num_classes=num_classes)
        if to_logits is None:
            _check_classes(model, logits, num_classes)
    if image is not None:
        taps["image"] = _make_tap(model, "image", image, "input")
    is_auto = isinstance(settings.get("windows"), str) and settings["windows"] == "auto"
    auto = contrast == "hicl" and is_auto
    channels, stride = _measure(
        model, taps, in_channels, stride, grid, example, needs_stride=auto and stride is None
    )
    if is_auto:
        settings["windows"] = _windows(stride or 1) if auto else (1,)
    module = find_module(model, feature)
    parameter = next(chain(module.parameters(), model.parameters()), torch.zeros(()))
    branch = _build(parameter, contrast, channels, num_classes, seed, settings).train(model.training)
    balance = None
    if weight_of == "gradient":
        balance = branch.balance = GradientBalance().to(parameter.device)
    branch._attachment = Attachment(
        model,
        taps,
        weight=weight,
        balance=balance,
        start_iter=start_iter,
        warmup_iters=warmup_iters,
        seed=seed,
        grid=grid,
        to_logits=to_logits,
    )
    model.add_module(NAME, branch)
    return branch


def strip(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``state_dict`` of a model without what `attach` added: the plain model's weights.

    The contrast is found wherever it is in the model (``model.hicl.`` of a wrapper's state, say). Other names are kept.

    Raises ValueError for a checkpoint that holds state dicts.
    """
    inner = [key for key, value in state_dict.items() if isinstance(value, Mapping)]
    if inner:
        raise ValueError(
            f"strip takes the state dict of a model, and this holds others: {', '.join(map(str, inner))}; give the one of the "
            "model"
        )
    ends = [key for key in state_dict if f".{key}".endswith(f".{_MARK}")]
    prefixes = tuple(key.removesuffix(_MARK) + f"{NAME}." for key in ends)
    return {key: value for key, value in state_dict.items() if not _is_of_contrast(key, prefixes)}


def _is_of_contrast(key: str, prefixes: tuple[str, ...]) -> bool:
    if key.startswith(prefixes):
        return True
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key.startswith(f"{NAME}.")


def check_settings(
    weight: float,
    weight_of: str,
    start_iter: int,
    warmup_iters: int,
    seed: int,
    grid: tuple[int, int] | None = None,
    stride: int | None = None,
) -> None:
    """Raise ValueError for a value of these arguments of `attach` that has no meaning."""
    check_number(0, weight=weight)
    if weight_of not in KINDS:
        raise ValueError(f"weight_of must be {' or '.join(KINDS)}, not {weight_of!r}")
    check_whole(0, start_iter=start_iter, warmup_iters=warmup_iters)
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed must be a whole number, not {seed!r}")
    if stride is not None:
        check_whole(1, stride=stride)
    if grid is not None:
        if not isinstance(grid, Sequence) or len(grid) != 2:
            raise ValueError(f"grid must be (h, w), the rows and columns of the tokens, not {grid!r}")
        check_whole(1, **{"grid's height": grid[0], "grid's width": grid[1]})


def _check_model(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"attach to the model before torch.jit: {name} takes no hooks")
    if isinstance(model, DistributedDataParallel | DataParallel) or name == "FullyShardedDataParallel":
        raise ValueError(
            f"attach to the model before it is wrapped: {name} would not know the contrast's parameters"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError("attach to the model before it is compiled: what is compiled does not see new hooks")
    if isinstance(model, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise ValueError(
            f"{name} uses its children one after the other, and the contrast would be one of them: put it into a module of "
            "your own (self.net = ...; forward returns self.net(images)) and name its parts net.0, net.1, ..."
        )
    if isinstance(getattr(model, NAME, None), Contrast):
        raise ValueError(f"{name} has a contrast already; model.{NAME}.detach() takes it off")
    if hasattr(model, NAME):
        raise ValueError(f"{name} has an attribute {NAME} of its own, which is the contrast's name")


def _make_tap(model: nn.Module, role: str, name: str, side: str) -> Tap:
    if not isinstance(name, str):
        names = [known for known, module in model.named_modules() if module is name]
        hint = f": {names[0]!r}" if names else ""
        raise ValueError(f"{role} must be the name of a module{hint}, not {type(name).__name__}")
    try:
        find_module(model, name)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from None
    return Tap(name, side)


def _check_classes(model: nn.Module, logits: str, num_classes: int) -> None:
    channels = channels_of(find_module(model, logits), "output")
    if channels not in (None, num_classes):
        raise ValueError(
            f"logits: the module {logits} gives {channels} channels, but num_classes is {num_classes}"
        )


def _measure(
    model: nn.Module,
    taps: Mapping[str, Tap],
    channels: int | None,
    stride: int | None,
    grid: tuple[int, int] | None,
    example: Any,
    *,
    needs_stride: bool,
) -> tuple[int, int | None]:
    """Return channels and stride of the features: as given, as the module says, or as a blank forward shows."""
    tap = taps["feature"]
    declared = channels_of(find_module(model, tap.name), tap.side)
    if channels is not None and declared is not None and channels != declared:
        raise ValueError(
            f"in_channels is {channels}, but the {tap.side} of the module {tap.name} has {declared} channels"
        )
    channels = channels or declared
    if channels is not None and not needs_stride:
        return channels, stride
    if example is None:
        missing, keyword = ("stride", "stride=") if channels is not None else ("channels", "in_channels=")
        raise ValueError(
            f"the {missing} of the {tap.side} of the module {tap.name} cannot be told; give {keyword} or example="
        )
    args, kwargs = _arguments(example)
    with reading(model, taps.values()):
        run_blank(model, *args, **kwargs)
    try:
        images = taps["image"].take() if "image" in taps else find_images((*args, *kwargs.values()))
        features = tap.as_map(tap.take(), grid)
    except RuntimeError as error:
        raise ValueError(f"example: {error}") from None
    finally:
        for each in taps.values():
            each.clear()
    if needs_stride:
        if images is None:
            raise ValueError(
                "example holds no batch of images (B, 3, H, W), so the stride cannot be told; give stride="
            )
        (H, W), (h, w) = images.shape[2:], features.shape[2:]
        stride = infer_stride((H, W), (h, w))
    if channels not in (None, features.shape[1]):
        raise ValueError(f"the module {tap.name} passes maps of {features.shape[1]} channels, not {channels}")
    return features.shape[1], stride


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _windows(stride: int) -> tuple[int, ...]:
    """Return the sides of the windows in cells of ``stride`` pixels, ascending."""
    return tuple(sorted({max(1, round(pixels / stride)) for pixels in _WINDOW_PIXELS}))


def _build(
    like: Tensor, name: str, channels: int, num_classes: int, seed: int, settings: Mapping[str, Any]
) -> Contrast:
    """Build the contrast on the device of ``like``, in its type if that is float64, from a random state of its own."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds every device, and those are not forked.
        torch.default_generator.manual_seed(generator_seed(seed))
        contrast = build_contrast(name, channels, num_classes, **settings)
    return contrast.to(like.device, torch.float64 if like.dtype == torch.float64 else None)
