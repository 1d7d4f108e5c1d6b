"""A contrast of your own, usable by name: here the means of classes are pushed apart.

As a row of a matrix or a training with Detectron2: IMPORTS: ["own_contrast"] with this folder on PYTHONPATH, and
MODEL.HICL.CONTRAST: "class_means"; its keywords are keys (MODEL.HICL.LEAST_CELLS). In plain PyTorch:

    python examples/own_contrast.py --steps 20
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from plain_pytorch import CLASSES, UNet, make_batch
from torch import Tensor

from hicl_d2.contrast import Contrast, attach, register_contrast
from hicl_d2.contrast.candidates import count_labels
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level


@register_contrast("class_means")
class ClassMeans(Contrast):
    """Push the mean embeddings of the classes in a batch apart."""

    def __init__(self, in_channels: int, num_classes: int, *, least_cells: int = 4, **shared: Any) -> None:
        """``least_cells``: cells that a class needs to take part."""
        super().__init__(in_channels, num_classes, **shared)
        self.least_cells = least_cells

    def contrast(
        self, features: Tensor, grid: LabelGrid, logits: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of exp(similarity / T) over pairs of classes. See `Contrast.contrast`."""
        classes = count_labels(grid, [Level.cell()])[0].classes.flatten()
        rows = self.embedding(features.permute(0, 2, 3, 1).flatten(0, 2).to(self.compute_dtype))
        kept = [k for k in range(self.num_classes) if (classes == k).sum() >= self.least_cells]
        if len(kept) < 2:
            return rows.sum() * 0.0, {}
        means = F.normalize(torch.stack([rows[classes == k].mean(0) for k in kept]))
        pairs = (means @ means.t())[~torch.eye(len(kept), dtype=torch.bool, device=means.device)]
        return (pairs / self.temperature).exp().mean(), {
            "class_means/classes": torch.tensor(float(len(kept)))
        }


def main() -> None:
    """Train, and show both losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = UNet()
    branch = attach(model, feature="classifier", num_classes=CLASSES, contrast="class_means", least_cells=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(args.steps):
        images, labels = make_batch(step)
        segmentation = F.cross_entropy(model(images), labels)
        contrast = branch.loss(labels)
        optimizer.zero_grad()
        (segmentation + contrast).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: segmentation {segmentation.item():.3f}, contrast {contrast.item():.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
