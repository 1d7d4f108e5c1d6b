"""Where an attached contrast reads in a model, and how its loss is made of what it reads."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicl_d2.contrast.balance import GradientBalance
from hicl_d2.contrast.frame import Contrast, step_seed, zero_with_graph
from hicl_d2.contrast.fused.host import on_host
from hicl_d2.contrast.grid import signed
from hicl_d2.contrast.schedule import ramp
from hicl_d2.contrast.taps import Tap, find_module

__all__ = ["NAME", "Attachment", "Seen", "find_images"]

# The child of the model that a contrast becomes.
NAME = "hicl"
# Calls per process in which labels on a device are looked at. Wrong ones (another numbering, another ignore value) show
# in the first of them.
_LOOKS = 10


class Seen(NamedTuple):
    """Hold what passed in one forward.

    Attributes:
        features: (B, C, h, w).
        logits: what the module named for them gave; None if none was named.
        images: the batch of images (B, 3, H, W); None where the model was called with something else.
        watched: what the module passed, and the view of it that the features are made of; None where gradients are not
            measured.
    """

    features: Tensor
    logits: Any
    images: Tensor | None
    watched: tuple[Tensor, Tensor] | None = None


class Attachment:
    """Hold where a contrast reads in a model and how much its loss weighs.

    Hooks around the model's forward arm the taps in training, so that a module called later, by gradient checkpointing
    or by hand, is not captured. The hooks are methods of this object, which the contrast holds: a copy of the model, a
    pickle or an averaged copy has an attachment of its own. What was captured is neither copied nor pickled.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, Tap],
        *,
        weight: float = 0.1,
        start_iter: int = 0,
        warmup_iters: int = 0,
        seed: int = 0,
        grid: tuple[int, int] | None = None,
        to_logits: Callable[[Any], Tensor] | None = None,
        balance: GradientBalance | None = None,
    ) -> None:
        """Put ``taps`` ("feature" and, as named, "logits" and "image") on the modules of ``model``.

        The others are parameters of `attach`.
        """
        self.taps = dict(taps)
        self.weight, self.start_iter, self.warmup_iters, self.seed = weight, start_iter, warmup_iters, seed
        self.grid, self.to_logits, self.balance = grid, to_logits, balance
        self.captures_eval = False
        self._looks = _LOOKS
        self._model: weakref.ref[nn.Module] | None = weakref.ref(model)
        self._forget("it has not been called since the contrast was attached")
        self.handles: list[RemovableHandle] = [
            find_module(model, tap.name).register_forward_hook(tap, with_kwargs=True) for tap in taps.values()
        ]
        self.handles += [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]

    def __getstate__(self) -> dict[str, Any]:
        model = self._model() if self._model else None
        handles = [] if model is None else self.handles  # torch cannot copy those of a model that is gone
        state = {**self.__dict__, "_model": model, "handles": handles}
        return {**state, "_images": None, "_why_nothing": "it was copied after its last forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._model = None if state["_model"] is None else weakref.ref(state["_model"])

    # ---------------------------------------------------- capturing

    def _forget(self, why: str) -> None:
        """Drop what was captured; ``why`` there is nothing is what the next error says."""
        for tap in self.taps.values():
            tap.clear()
        self._images: Tensor | None = None
        self._why_nothing = why

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward: drop what is left of the last one, and arm the taps in training."""
        if not (model.training or self.captures_eval):
            self._forget("it was in eval mode in its last forward, where nothing is captured")
            return
        self._forget("its last forward did not come to an end")
        for tap in self.taps.values():
            tap.arm()
        if "image" not in self.taps:
            self._images = find_images((*args, *kwargs.values()))

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the model's forward: see nothing more, not the recomputation of gradient checkpointing either."""
        if self.taps["feature"].armed:
            self._why_nothing = ""
        for tap in self.taps.values():
            tap.armed = False

    def take(self) -> Seen:
        """Return what passed in the last training forward, and forget it; it can be taken once.

        Raises RuntimeError if there is nothing, or something else than a feature map with a gradient.
        """
        if self._why_nothing:
            raise RuntimeError(
                f"nothing was captured of the model: {self._why_nothing}; call the model itself, so that its forward hooks "
                "run, in training mode before each loss"
            )
        try:
            images = self.taps["image"].take() if "image" in self.taps else self._images
            passed = self.taps["feature"].take()
            watched = self._watch(passed)
            features = self.taps["feature"].as_map(watched[1] if watched else passed, self.grid)
            logits = self.taps["logits"].take() if "logits" in self.taps else None
        finally:
            self._forget("what was captured in its last forward has been used")
        if torch.is_grad_enabled() and not features.requires_grad:
            raise RuntimeError(
                f"the {self.taps['feature'].side} of the module {self.taps['feature'].name} carries no gradient, so the "
                "contrast would train nothing but its own embedding: it is frozen, detached, computed without gradients, "
                "or inside a reentrant checkpoint (use_reentrant=False keeps its graph)"
            )
        return Seen(features, logits, images, watched)

    def _watch(self, passed: Any) -> tuple[Tensor, Tensor] | None:
        """Return what was passed and a view of it, through which the contrast's gradient alone goes; None without balance."""
        if self.balance is None or not (isinstance(passed, Tensor) and passed.requires_grad):
            return None
        return passed, passed.view_as(passed)

    @contextmanager
    def capturing(self) -> Iterator[list[Seen]]:
        """Capture the forward inside the block in whatever mode; the list holds what was seen once the block ends."""
        seen: list[Seen] = []
        self.captures_eval = True
        try:
            yield seen
            with torch.no_grad():
                seen.append(self.take())
        finally:
            self.captures_eval = False

    # ---------------------------------------------------- computing

    def weight_at(self, step: int | None) -> float:
        """Return the weight at ``step``; None stands for the end of the ramp."""
        return self.weight if step is None else self.weight * ramp(step, self.warmup_iters, self.start_iter)

    def loss(self, contrast: Contrast, labels: Tensor, *, describe: bool = False) -> Tensor:
        """Compute the weighted loss of the last training forward. See `Contrast.loss`."""
        seen = self.take()
        labels = self._fit(contrast, labels, seen)
        logits = seen.logits
        if "logits" in self.taps:
            if self.to_logits is not None:
                logits = self.to_logits(logits)
            logits = self.taps["logits"].as_map(logits, self.grid)
        step = contrast.count_step()
        return self.compute(contrast, seen, labels, logits, step, describe=describe)

    def compute(
        self,
        contrast: Contrast,
        seen: Seen,
        labels: Tensor | None,
        logits: Tensor | None,
        step: int | None,
        *,
        describe: bool = False,
    ) -> Tensor:
        """Compute weight x contrast (0-d); at weight 0, a zero with a graph to the features and every parameter.

        Labels are not read then. ``step`` says how far the ramp is and what is drawn; None stands for the end of the ramp.
        Figures that were asked for are in ``contrast.diagnostics``.
        """
        contrast.diagnostics = {}
        weight = self.weight_at(step)
        if weight == 0:
            return zero_with_graph(contrast) + seen.features.flatten()[:0].sum()
        output = contrast(
            seen.features, labels, logits, seed=step_seed(step or 0, self.seed), describe=describe
        )
        contrast.diagnostics = output.diagnostics
        loss = cast(Tensor, output.loss)
        if self.balance is None:
            return weight * loss
        factor = weight * self.balance.factor(step or 0)
        if seen.watched is not None and self.balance.is_measured(step or 0):
            self.balance.measure(*seen.watched, factor)
        if describe:
            contrast.diagnostics["hicl/weight"] = factor
        return factor.to(loss.dtype) * loss

    def _fit(self, contrast: Contrast, labels: Tensor, seen: Seen) -> Tensor:
        """Return ``labels`` on the features' device, repeated to the images' size where they are coarser."""
        batch = len(seen.features)
        if not (
            isinstance(labels, Tensor) and labels.dim() == 3 and len(labels) == batch and _is_integer(labels)
        ):
            is_tensor = isinstance(labels, Tensor)
            found = f"{tuple(labels.shape)} {labels.dtype}" if is_tensor else type(labels).__name__
            raise ValueError(f"labels must be ({batch}, H, W) of an integer type, not {found}")
        labels = signed(labels)
        self._look_at(contrast, labels)
        labels = labels.to(seen.features.device, non_blocking=True)
        if seen.images is None:
            return labels
        (H, W), (height, width) = labels.shape[1:], seen.images.shape[2:]
        if _times((height, width), (H, W)):
            return labels
        times = _times((H, W), (height, width))
        if not times:
            raise ValueError(
                f"labels of {H} x {W} pixels do not lie on images of {height} x {width}: neither is a whole multiple of the "
                "other; resize or pad them with the images (nearest neighbour, padding ignored)"
            )
        return labels.repeat_interleave(times, 1).repeat_interleave(times, 2)

    def _look_at(self, contrast: Contrast, labels: Tensor) -> None:
        """Raise ValueError for labels that are neither a class nor ignored.

        The contrast would leave them out without a word. Labels in the host's memory are looked at in every step; those
        on a device in the first steps of the process alone, because the host has to wait for the answer.
        """
        if not on_host(labels):
            if self._looks == 0:
                return
            self._looks -= 1
        K, ignored = contrast.num_classes, contrast.ignore_value
        if torch.iinfo(labels.dtype).bits < 32:  # where a comparison with a greater number fails
            labels = labels.int()
        wrong = (labels < 0) | (labels >= K)
        wrong &= labels != ignored
        if wrong.any():
            values = labels[wrong].unique()[:5].tolist()
            raise ValueError(
                f"labels hold {', '.join(map(str, values))}, neither a class (0 to {K - 1}) nor the ignore value ({ignored}); "
                "map them to the classes, or attach with their ignore_value and num_classes"
            )

    # ---------------------------------------------------- the model

    @property
    def model(self) -> nn.Module:
        """Return the model; raises RuntimeError if it is gone."""
        model = self._model() if self._model else None
        if model is None:
            raise RuntimeError("the model that the contrast was attached to no longer exists")
        return model

    def remove(self) -> nn.Module:
        """Take hooks and contrast off the model, and return it."""
        model = self.model
        for handle in self.handles:
            handle.remove()
        delattr(model, NAME)
        return model


def find_images(values: Iterable[Any]) -> Tensor | None:
    """Return the largest batch of images (B, C, H, W) among what a model is called with, if there is one."""
    largest: Tensor | None = None
    for value in values:
        # Of channels-last images (B, H, W, 3) the size would be misread.
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[3] > 4:
            area = value.shape[2] * value.shape[3]
            if largest is None or area > largest.shape[2] * largest.shape[3]:
                largest = value
    return largest


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _times(small: tuple[int, ...], large: tuple[int, ...]) -> int:
    """Return how often the size ``small`` goes into ``large``, 0 if not a whole number of times, alike on both axes."""
    times = large[0] // max(small[0], 1)
    return times if times and tuple(times * side for side in small) == tuple(large) else 0
