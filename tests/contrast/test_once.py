"""The second derivative of a form without one is refused, and is right in the form that has one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hicl_d2.contrast.build import CONTRASTS, build_contrast
from hicl_d2.modeling.deeplab.fused_loss import upsampled_loss
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy
from tests.contrast.batches import make_batch, make_branch


def penalty(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the squared length of the gradient of ``loss`` at ``x`` squared."""
    (first,) = torch.autograd.grad(loss(x * x), [x], create_graph=True)
    return first.square().sum()


SETTINGS: list[dict[str, Any]] = [{}, {"windows": (1,)}, {"level_loss": "separate"}, {"embedding_layers": 1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_fused_branch_refuses_what_the_textbook_has(settings: dict[str, Any]) -> None:
    features, labels, _ = make_batch()
    fused, textbook = (make_branch(implementation=form, **settings) for form in ("fused", "textbook"))
    with pytest.raises(RuntimeError, match=r'no second derivative.*implementation="textbook"'):
        penalty(lambda x: fused(x, labels, seed=0).loss, features)

    def of_textbook(x: Tensor) -> Tensor:
        return penalty(lambda x: textbook(x, labels, seed=0).loss, x)

    (second,) = torch.autograd.grad(of_textbook(features), [features])
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=features.dtype)
    step = 1e-5
    ends = [
        of_textbook((features + sign * step * direction).detach().requires_grad_()).detach()
        for sign in (1, -1)
    ]
    torch.testing.assert_close(
        (second * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("name", sorted(CONTRASTS))
def test_no_contrast_gives_a_second_derivative_that_lacks_a_part(name: str) -> None:
    features, labels, logits = make_batch(size=(16, 16))
    torch.manual_seed(0)
    contrast = build_contrast(name, 5, 4, windows=(1, 2)).double()
    with pytest.raises(RuntimeError, match="no second derivative"):
        penalty(lambda x: contrast(x, labels, logits, seed=0).loss, features)


@pytest.mark.parametrize("loss", [PixelCrossEntropy(255), HardPixelMining(255, 0.3)], ids=["all", "hardest"])
def test_the_loss_of_upsampled_logits_refuses(loss: torch.nn.Module) -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (2, 16, 20))
    assert penalty(lambda x: loss(F.interpolate(x, scale_factor=4, mode="bilinear"), labels), logits) > 0
    with pytest.raises(RuntimeError, match=r"no second derivative.*plain loss of the upsampled logits"):
        penalty(lambda x: upsampled_loss(loss, x, labels, 4), logits)
