"""Batches to test with, and what a branch draws from them in the words of the reference."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast import HiCLBranch
from hicl_d2.contrast.branch import Drawn
from hicl_d2.contrast.grid import align_labels, resize_logits
from tests.contrast.reference import Entry, Settings, Window, embed, loss_of, mean_feature

IGNORE = 255


def make_batch(
    *,
    num_classes: int = 4,
    batch: int = 2,
    size: tuple[int, int] = (5, 6),
    stride: int = 2,
    channels: int = 5,
    patch: int = 4,
    noise: float = 0.05,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, labels in square patches of ``patch`` cells with some pixels ignored or wrong, and logits."""
    generator = torch.Generator().manual_seed(seed)
    h, w = size
    patches = torch.randint(num_classes, (batch, 1, -(-h // patch), -(-w // patch)), generator=generator)
    labels = F.interpolate(patches.double(), scale_factor=patch * stride)[
        :, 0, : h * stride, : w * stride
    ].long()
    spots = torch.rand(labels.shape, generator=generator)
    labels = torch.where(spots < noise, torch.randint(num_classes, labels.shape, generator=generator), labels)
    labels = torch.where(spots > 1 - 2 * noise, IGNORE, labels)
    features = torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, num_classes, h, w, generator=generator, dtype=torch.float64)
    return features.to(dtype).requires_grad_(), labels, logits.to(dtype)


def make_branch(
    dtype: torch.dtype = torch.float64, num_classes: int = 4, channels: int = 5, **settings: Any
) -> HiCLBranch:
    """Make a small branch whose budgets hold everything, unless told otherwise."""
    torch.manual_seed(0)
    defaults = {
        "windows": (1, 2, 4),
        "dim": 6,
        "hidden_dim": 7,
        "anchors": 500,
        "components": 1000,
        "temperature": 0.2,
    }
    return HiCLBranch(channels, num_classes, **{**defaults, **settings}).to(dtype)


def settings_of(branch: HiCLBranch) -> list[Settings]:
    middle = branch.cell_class == "middle"
    return [
        Settings(p.window, p.step, p.purity, p.coverage, p.confidence, p.weight, middle)
        for p in branch.levels
    ]


def draw(branch: HiCLBranch, features: Tensor, labels: Tensor, logits: Tensor | None, seed: int = 0) -> Drawn:
    """Draw what `branch` draws from a batch."""
    size = (features.shape[2], features.shape[3])
    grid = align_labels(labels, size, branch.num_classes, branch.ignore_value)
    logits = None if logits is None else resize_logits(logits, size)
    return branch.draw(grid, logits, torch.Generator().manual_seed(seed))


def read_windows(
    branch: HiCLBranch, drawn: Drawn, features: Tensor
) -> tuple[dict[Window, int], dict[Window, int]]:
    """Return the anchors and components of a draw as windows with their classes."""
    B, _, h, w = features.shape
    anchors, components = {}, {}
    for index, label, valid in zip(*(part.tolist() for part in drawn_parts(drawn.anchors)), strict=True):
        if valid:
            anchors[Window(index // (h * w), index // w % h, index % w, 1, 0)] = label
    for index, group, valid in zip(*(part.tolist() for part in drawn_parts(drawn.components)), strict=True):
        for k, level in enumerate(branch.levels):
            rows, columns = level.extent((h, w))
            if index < B * rows * columns:
                image, row, column = index // (rows * columns), index // columns % rows, index % columns
                if valid:
                    window = Window(image, row * level.step, column * level.step, level.window, k)
                    components[window] = group // len(branch.levels)
                    assert group % len(branch.levels) == k
                break
            index -= B * rows * columns
    return anchors, components


def drawn_parts(sample: Any) -> tuple[Tensor, Tensor, Tensor]:
    return sample.index, sample.group, sample.valid


def reference_loss(
    branch: HiCLBranch,
    features: Tensor,
    labels: Tensor,
    logits: Tensor | None,
    *,
    seed: int = 0,
    remembered: list[Entry] | None = None,
) -> Tensor:
    """Return the reference's loss of what `branch` draws from a batch."""
    anchors, components = read_windows(branch, draw(branch, features, labels, logits, seed), features)
    entries = []
    for window, label in components.items():
        row = embed(branch.embedding, mean_feature(features, window))
        entries.append(Entry(row.detach() if branch.detach_components else row, label, window.level, window))
    return loss_of(
        [
            (cell, embed(branch.embedding, mean_feature(features, cell)), label)
            for cell, label in anchors.items()
        ],
        entries + (remembered or []),
        [level.weight for level in branch.levels],
        branch.temperature,
        separate=branch.separate,
        focus=branch.positive_focus,
    )


def gradients(loss: Tensor, branch: HiCLBranch, features: Tensor) -> list[Tensor]:
    parameters = list(branch.parameters())
    found = torch.autograd.grad(loss, [features, *parameters], allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, [features, *parameters], strict=True)
    ]
