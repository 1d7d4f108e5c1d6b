"""The frame of every contrast: the base class, which prepares the input, and the output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hicl_d2.contrast.checks import check_number, check_whole
from hicl_d2.contrast.embedding import EmbeddingHead
from hicl_d2.contrast.grid import LabelGrid, align_labels, resize_logits

if TYPE_CHECKING:
    from hicl_d2.contrast.attachment import Attachment

__all__ = ["Contrast", "ContrastOutput", "step_seed", "uncompiled", "zero_with_graph"]

# Key of the step count in a state dict, below the contrast's own prefix.
_STEPS = "steps"


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
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
    given to `torch.compile` it runs uncompiled. Attached to a model (`attach`), it reads the features and counts the
    steps by itself: `loss` and `detach`.

    Attributes:
        reaches_all: whether the loss that `contrast` returns always has a graph to every parameter.
        steps: training steps that were counted: calls of `loss`, and calls without a seed. A number of the host,
            because the host seeds the generator; it is saved in the state dict as "steps", int64. A state without it
            loads without complaint.
        diagnostics: what `loss` described last.
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
        check_number(0, temperature=temperature)
        if temperature == 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        check_whole(1, in_channels=in_channels, num_classes=num_classes)
        check_whole(1, dim=dim, hidden_dim=hidden_dim, embedding_layers=embedding_layers)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.temperature = temperature
        self.dim = dim
        self.embedding = EmbeddingHead(in_channels, hidden_dim, dim, embedding_layers)
        self.steps = 0
        self._attachment: Attachment | None = None
        self.diagnostics: dict[str, Tensor] = {}

    @uncompiled
    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        logits: Tensor | None = None,
        *,
        seed: int | None = None,
        describe: bool = True,
    ) -> ContrastOutput:
        """Compute the loss of one batch.

        Args:
            features: (B, C, h, w), any float type.
            labels: (B, H, W) integer at image resolution; ``ignore_value`` and values outside the classes are unlabelled.
            logits: (B, K, h', w') class scores, or None.
            seed: of everything drawn in this step. Without one the contrast counts its own training steps, so that each
                draws other cells, and each process others than the next; in eval mode no step is spent. Under gradient
                checkpointing, which calls it twice, give a seed.
            describe: make the diagnostics; without them a step launches fewer operators.

        Raises ValueError where the shapes do not fit together.
        """
        self._check(features, labels, logits)
        with torch.autocast(features.device.type, enabled=False):
            size = (features.shape[2], features.shape[3])
            grid = align_labels(labels, size, self.num_classes, self.ignore_value)
            if logits is not None:
                logits = resize_logits(logits, size)
            generator = self.make_generator(features.device, seed)
            loss, step = self._contrast(features, grid, logits, generator)
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
        raise NotImplementedError(
            f"{type(self).__name__} defines no method contrast, which computes the loss"
        )

    def _contrast(self, *args: Any) -> tuple[Tensor, Any]:
        """Call `contrast`, and raise TypeError if a class of somebody's own returns something else."""
        found = self.contrast(*args)
        if not (
            isinstance(found, tuple)
            and len(found) == 2
            and isinstance(found[0], Tensor)
            and not found[0].dim()
        ):
            raise TypeError(
                f"{type(self).__name__}.contrast must return a loss, a tensor of no axes, and the figures of the step, "
                f"not {_shape(found) if isinstance(found, Tensor) else type(found).__name__}"
            )
        return found

    def describe(self, step: Any) -> dict[str, Tensor]:
        """Return the diagnostics (0-d, detached, by name). By default ``step``, from `contrast`, already is that dict."""
        return step

    def loss(self, labels: Tensor, *, describe: bool = False) -> Tensor:
        """Compute weight x ramp x contrast (0-d) of the features that the model made in its last training forward.

        For a contrast that `attach` made. Call it once after each forward, also when accumulating gradients: each call
        counts as a step.

        Args:
            labels: (B, H, W) integer, of the size of the images or a whole multiple or fraction of it. Best on the
                features' device already: a copy made here would wait for the model's forward.
            describe: put this step's figures into `diagnostics`.

        Raises RuntimeError where there is nothing to compute from: not attached, no training forward since the last
        call, features without gradient or of another form. Raises ValueError for labels that do not fit, and for values
        that are neither a class nor the ignore value (of labels on a GPU, in the first steps of a process).
        """
        return self.attachment.loss(self, labels, describe=describe)

    def detach(self) -> nn.Module:
        """Remove the contrast and its hooks from the model that it was attached to, and return that model."""
        model = self.attachment.remove()
        self._attachment = None
        return model

    @property
    def attachment(self) -> Attachment:
        """Return where the contrast reads in a model; raises RuntimeError unless `attach` made it."""
        if self._attachment is None:
            raise RuntimeError(
                "this contrast is not attached to a model; hicl_d2.contrast.attach makes one that is"
            )
        return self._attachment

    def make_generator(self, device: torch.device, seed: int | None) -> torch.Generator:
        """Make the generator of a step on ``device``; without a ``seed``, of the next step that is counted."""
        generator = torch.Generator(device=device)
        generator.manual_seed(step_seed(self.count_step()) if seed is None else seed)
        return generator

    def count_step(self) -> int:
        """Return the number of this step, from 0 on; in training the next one gets the next number."""
        step = self.steps
        self.steps += int(self.training)
        return step

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _STEPS] = torch.tensor(self.steps)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        key = prefix + _STEPS
        if key in state_dict:
            self.steps = int(state_dict[key])
        if key in unexpected:
            unexpected.remove(key)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return float64 for a float64 module, else float32."""
        return torch.float64 if self.embedding.dtype == torch.float64 else torch.float32

    def _check(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        if self.embedding.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the contrast computes in float32, but its parameters are {self.embedding.dtype}; call float() on it "
                "(features, and the model that they come from, may be of any float type)"
            )
        for name, value in (("features", features), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")
        if 0 in features.shape:
            raise ValueError(
                f"features of {_shape(features)} hold no image or no cell; leave such a batch out"
            )
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


def step_seed(step: int, seed: int = 0) -> int:
    """Return the seed of what one process draws in one step: different for each ``step``, process and ``seed``."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return generator_seed((seed * 1_000_003 + step) * 4096 + rank)


def generator_seed(seed: int) -> int:
    """Return ``seed``, any whole number, as one that a generator takes."""
    return seed if -(2**63) <= seed < 2**64 else seed % 2**64


def zero_with_graph(module: nn.Module) -> Tensor:
    """Return 0 with a graph to every parameter of ``module``.

    It sums empty slices: unlike 0 x sum(parameters), the result is 0 even where a parameter is not finite.
    """
    zeros = [parameter.flatten()[:0].sum() for parameter in module.parameters() if parameter.requires_grad]
    return torch.stack(zeros).sum() if zeros else torch.zeros(())


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(n) for n in tensor.shape) + ")"
