"""The frame of every contrast: the base class, which prepares the input, and the output."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hicl_d2.contrast.embedding import EmbeddingHead
from hicl_d2.contrast.grid import LabelGrid, align_labels, resize_logits

__all__ = ["Contrast", "ContrastOutput", "zero_with_graph"]


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``function`` uncompiled under torch.compile, which breaks gradients that autograd functions make in buffers.

    `torch.compiler.disable` as a decorator would import the whole compiler together with this module.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


class ContrastOutput(NamedTuple):
    """Hold what a contrast returns.

    Attributes:
        loss: 0-d float32 (float64 for a float64 module), with a graph to every parameter.
        diagnostics: 0-d, detached figures by name; empty if they were not asked for.
    """

    loss: Tensor
    diagnostics: dict[str, Tensor]


class Contrast(nn.Module):
    """Base class of the contrasts. A contrast implements `contrast`; the base does everything around it.

    It checks the shapes, switches autocast off, computes in float32 (float64 if the module is), aligns the labels with
    the feature grid, resizes the logits to it, draws from a generator of its own (the global random state is never
    touched), and gives every parameter a gradient in every step, even where there is nothing to contrast. Inside a model
    given to `torch.compile` it runs uncompiled.

    Attributes:
        reaches_all: whether the loss that `contrast` returns always has a graph to every parameter.
    """

    reaches_all = False

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        ignore_value: int = 255,
        temperature: float = 0.1,
        dim: int = 256,
        hidden_dim: int = 256,
        embedding_layers: int = 2,
    ) -> None:
        """Make what all contrasts share.

        Args:
            in_channels: C of the features.
            num_classes: K; labels are 0 to K - 1.
            ignore_value: label of pixels without a class.
            temperature: of the softmax over similarities, > 0.
            dim: width of the embedding.
            hidden_dim: width of its hidden layers.
            embedding_layers: its linear layers; 1 is a projection.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.temperature = temperature
        self.dim = dim
        self.embedding = EmbeddingHead(in_channels, hidden_dim, dim, embedding_layers)

    @_uncompiled
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        logits: Tensor | None = None,
        *,
        seed: int = 0,
        describe: bool = True,
    ) -> ContrastOutput:
        """Compute the loss of one batch.

        Args:
            features: (B, C, h, w), any float type.
            labels: (B, H, W) integer at image resolution; ``ignore_value`` and values outside the classes are unlabelled.
            logits: (B, K, h', w') class scores, or None.
            seed: of everything that is drawn in this step.
            describe: make the diagnostics; without them a step launches fewer operators.

        Raises ValueError where the shapes do not fit together.
        """
        self._check(features, labels, logits)
        with torch.autocast(features.device.type, enabled=False):
            size = (features.shape[2], features.shape[3])
            grid = align_labels(labels, size, self.num_classes, self.ignore_value)
            if logits is not None:
                logits = resize_logits(logits, size)
            generator = torch.Generator(device=features.device)
            generator.manual_seed(seed)
            loss, step = self.contrast(features, grid, logits, generator)
            if not self.reaches_all:
                loss = loss + zero_with_graph(self)
            return ContrastOutput(loss, self.describe(step) if describe else {})

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        """Compute the loss (0-d), and return it with what `describe` makes the diagnostics of.

        Args:
            features: (B, C, h, w) as the caller gave them (use `compute_dtype` for rows taken out of them).
            grid: the labels over that grid.
            logits: (B, K, h, w), detached, float32 or float64, or None.
            generator: on the features' device, seeded for this step.
        """
        raise NotImplementedError

    def describe(self, step: Any) -> dict[str, Tensor]:
        """Return the diagnostics (0-d, detached, by name). By default ``step``, from `contrast`, already is that dict."""
        return step

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return float64 for a float64 module, else float32."""
        return torch.float64 if self.embedding.dtype == torch.float64 else torch.float32

    def _check(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        if features.dim() != 4 or features.shape[1] != self.in_channels or not features.is_floating_point():
            raise ValueError(
                f"features must be (B, {self.in_channels}, h, w) of a float type, not {_shape(features)} {features.dtype}"
            )
        if labels.dim() != 3 or labels.shape[0] != features.shape[0] or labels.is_floating_point():
            raise ValueError(
                f"labels must be ({features.shape[0]}, H, W) of an integer type, not {_shape(labels)} {labels.dtype}"
            )
        if logits is not None and (
            logits.dim() != 4 or logits.shape[0] != features.shape[0] or logits.shape[1] != self.num_classes
        ):
            raise ValueError(
                f"logits must be ({features.shape[0]}, {self.num_classes}, h, w) or None, not {_shape(logits)}"
            )


def zero_with_graph(module: nn.Module) -> Tensor:
    """Return 0 with a graph to every parameter of ``module``.

    It sums empty slices: unlike 0 x sum(parameters), the result is 0 even where a parameter is not finite.
    """
    zeros = [parameter.flatten()[:0].sum() for parameter in module.parameters() if parameter.requires_grad]
    return torch.stack(zeros).sum() if zeros else torch.zeros(())


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(n) for n in tensor.shape) + ")"
