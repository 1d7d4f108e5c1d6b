"""Small models that a contrast is attached to in tests."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hicl_d2.contrast import Contrast, attach

CLASSES = 4
SETTINGS: dict[str, Any] = {
    "windows": (1, 2), "anchors": 48, "components": 48, "dim": 8, "hidden_dim": 8
}  # fmt: skip


class Toy(nn.Module):
    """A segmentor of stride 4, whose middle may be recomputed in backward."""

    def __init__(self, checkpointed: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 12, 3, stride=4, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.GELU())
        self.classifier = nn.Conv2d(12, CLASSES, 1)
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone(images)
        if self.checkpointed and self.training:
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
        else:
            x = self.middle(x)
        return self.classifier(x)


class Tokens(nn.Module):
    """A segmentor that works on token sequences (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.layer = nn.Linear(12, 12)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patches(images).flatten(2).transpose(1, 2))
        return self.classifier(self.layer(x).relu()).transpose(1, 2).unflatten(2, (8, 8))


def make_batch(seed: int = 0, size: int = 32, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(CLASSES, (batch, size // 8, size // 8), generator=generator)
    labels = patches.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :2] = 255
    return torch.randn(batch, 3, size, size, generator=generator), labels


def make_model(kind: type[nn.Module] = Toy, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(**settings)


def attached(model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, Contrast]:
    """Return a model and its contrast; by default `Toy` read before and after its classifier."""
    model = make_model() if model is None else model
    options = {"feature": "classifier", "logits": "classifier", "num_classes": CLASSES, "seed": 3}
    return model, attach(model, **{**options, **SETTINGS, **settings})


def by_hand(model: Toy, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features before the classifier and the logits, without any hook."""
    features = model.middle(model.backbone(images))
    return features, model.classifier(features)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
