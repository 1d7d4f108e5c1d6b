"""Hi-CL on a model of your own in plain PyTorch: a small U-Net at stride 1, trained on generated images.

python examples/plain_pytorch.py --steps 20
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.contrast import attach, strip

CLASSES = 3


class UNet(nn.Module):
    """Two halvings, two doublings, a classifier at the images' own resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(112, 32, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(32, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        first = self.first(images)
        second = self.second(first)
        third = self.third(second)
        maps = [F.interpolate(each, images.shape[-2:], mode="bilinear") for each in (second, third)]
        return self.classifier(self.up(torch.cat([first, *maps], dim=1)))


def make_batch(seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Return images (4, 3, H, W) of bright rectangles and dark stripes, and labels (4, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(4, size, size, dtype=torch.long)
    for image in labels:
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        image[top : top + size // 2, left : left + size // 2] = 1
        image[:, (left * 2) % size :: size // 4] = 2
    levels = torch.tensor([0.3, 0.7, 0.0])[labels][:, None].expand(-1, 3, -1, -1)
    return levels + 0.2 * torch.randn(4, 3, size, size, generator=generator), labels


def main() -> None:
    """Train, and show both losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = UNet()
    # The features are what goes into the classifier. At stride 1 a window of 4 pixels has 4 cells: "auto" says so.
    branch = attach(
        model,
        feature="classifier",
        logits="classifier",
        num_classes=CLASSES,
        windows="auto",
        stride=1,
        warmup_iters=10,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # after attach: the branch has parameters too
    for step in range(args.steps):
        images, labels = make_batch(step)
        segmentation = F.cross_entropy(model(images), labels)
        contrast = branch.loss(labels)  # weight and ramp are in it
        optimizer.zero_grad()
        (segmentation + contrast).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: segmentation {segmentation.item():.3f}, contrast {contrast.item():.3f}")  # noqa: T201
    torch.save(strip(model.state_dict()), "unet.pth")  # loads into the plain model
    print("the plain model's weights: unet.pth")  # noqa: T201


if __name__ == "__main__":
    main()
