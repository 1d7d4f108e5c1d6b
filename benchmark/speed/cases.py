"""Made-up batches of realistic labels, and the steps that are measured on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast import Contrast, build_contrast
from hicl_d2.contrast.bank import ComponentBank

__all__ = [
    "Case",
    "Step",
    "hicl_step",
    "make_batch",
    "make_contrast",
    "make_floor",
    "make_labels",
    "make_step",
]

IGNORE, IGNORED_SHARE, STRIDE = 255, 0.05, 4

# One forward and backward pass.
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Hold what a batch and the contrasts on it are made from; sizes of labels in pixels."""

    batch: int
    height: int
    width: int
    classes: int
    channels: int = 256
    anchors: int = 1728
    components: int = 3141
    bank: int = 0

    @property
    def cells(self) -> int:
        return self.batch * (self.height // STRIDE) * (self.width // STRIDE)

    @property
    def map_bytes(self) -> int:
        return self.cells * self.channels * 4

    def __str__(self) -> str:
        return f"{self.batch} x {self.height} x {self.width}, {self.classes} classes"


def make_labels(case: Case) -> Tensor:
    """Draw labels (B, H, W) uint8 of ellipses of many sizes and all classes, a share of them ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.empty(case.batch, case.height, case.width, dtype=torch.uint8)
    rows, columns = torch.arange(case.height)[:, None], torch.arange(case.width)
    for image in labels:
        image.fill_(int(torch.randint(case.classes, (1,), generator=generator)))
        largest, smallest = min(case.height, case.width) / 4, 6.0
        painted = max(2 * case.classes, 80)
        for k in range(painted):  # large ones first, so that small ones stay visible
            share = (k / painted) ** 0.5
            _paint(
                image, rows, columns, largest ** (1 - share) * smallest**share, k % case.classes, generator
            )
        while (image == IGNORE).float().mean() < IGNORED_SHARE:
            _paint(image, rows, columns, smallest * 2, IGNORE, generator)
    return labels


def _paint(
    image: Tensor, rows: Tensor, columns: Tensor, radius: float, value: int, generator: torch.Generator
) -> None:
    y, x, stretch = torch.rand(3, generator=generator).tolist()
    tall, wide = radius * (0.5 + stretch), radius * (1.5 - stretch)
    inside = ((rows - y * len(rows)) / tall) ** 2 + ((columns - x * len(columns)) / wide) ** 2 < 1
    image[inside] = value


def make_batch(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Make features (B, C, h, w) float32, labels (B, H, W) uint8 and logits (B, K, h, w), four in five right."""
    labels = make_labels(case)
    generator = torch.Generator().manual_seed(1)
    at_cells = labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long().clamp(max=case.classes - 1)
    features = torch.randn(case.batch, case.channels, *at_cells.shape[1:], generator=generator)
    logits = torch.randn(case.batch, case.classes, *at_cells.shape[1:], generator=generator)
    right = torch.rand(at_cells.shape, generator=generator) < 0.8
    logits.scatter_add_(1, at_cells[:, None], 8.0 * right[:, None])
    return features.to(device), labels.to(device), logits.to(device)


def make_step(contrast: Contrast, batch: tuple[Tensor, Tensor, Tensor], layout: torch.memory_format) -> Step:
    """Return one forward and backward pass of ``contrast``, always with the same samples, that leaves nothing behind.

    Like most steps of training it makes no diagnostics.
    """
    # A leaf of its own: rows share a batch, and one row's leaf must not pass another's gradient on through a change of layout.
    features = batch[0].detach().contiguous(memory_format=layout).requires_grad_()
    contrast.to(features.device)
    for module in contrast.modules():
        if isinstance(module, ComponentBank):  # as it is after some steps of training
            module.rows.copy_(F.normalize(torch.randn_like(module.rows), dim=-1))
            module.written.fill_(module.size)

    def step() -> None:
        contrast(features, batch[1], batch[2], seed=1, describe=False).loss.backward()
        features.grad = None
        contrast.zero_grad(set_to_none=True)

    return step


def make_floor(case: Case, device: torch.device) -> Step:
    """Return the matrix products that the loss of ``case`` cannot do without, on rows of 256."""
    A, M, C, H, D = case.anchors, case.components, case.channels, 256, 256
    make = torch.Generator().manual_seed(2)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(device)

    taken, hidden, embedded = rows(A + M, C), rows(A + M, H), rows(A + M, D)
    first, second, similarity = rows(C, H), rows(H, D), rows(A, M)
    anchors, components = embedded[:A], embedded[A:]
    out = [torch.empty_like(each) for each in (hidden, embedded, hidden, second, taken, first, similarity)]
    out += [torch.empty_like(anchors), torch.empty_like(components)]

    def step() -> None:
        torch.mm(taken, first, out=out[0])
        torch.mm(hidden, second, out=out[1])
        torch.mm(embedded, second.t(), out=out[2])
        torch.mm(hidden.t(), embedded, out=out[3])
        torch.mm(hidden, first.t(), out=out[4])
        torch.mm(taken.t(), hidden, out=out[5])
        torch.mm(anchors, components.t(), out=out[6])
        torch.mm(similarity, components, out=out[7])
        torch.mm(similarity.t(), anchors, out=out[8])

    return step


def make_contrast(name: str, case: Case, **settings: Any) -> Contrast:
    """Build a contrast for ``case``, whose budgets are Hi-CL's: peers keep their own unless ``settings`` say otherwise."""
    torch.manual_seed(0)
    if name == "hicl":
        settings = {
            "anchors": case.anchors,
            "components": case.components,
            "bank_size": case.bank,
            **settings,
        }
    return build_contrast(name, case.channels, case.classes, **settings)


def hicl_step(case: Case, device: torch.device) -> Step:
    """Return a step of the fused Hi-CL loss on features in channels_last."""
    return make_step(make_contrast("hicl", case), make_batch(case, device), torch.channels_last)
