"""The losses together with the upsampling: equal to the plain ones on upsampled logits."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.modeling.deeplab import fused_loss
from hicl_d2.modeling.deeplab.fused_loss import can_fuse, hardest, upsampled_loss
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy

LOSSES = {
    "cross_entropy": PixelCrossEntropy(255),
    "hard_pixels": HardPixelMining(255, 0.2),
    "all_pixels": HardPixelMining(255),
    "class_weights": HardPixelMining(255, 0.5, torch.tensor([1.0, 0.25, 3.0, 0.0, 2.0])),
    "weighted_cross_entropy": PixelCrossEntropy(255, torch.tensor([1.0, 0.25, 3.0, 0.0, 2.0])),
    "other_ignore": HardPixelMining(-1, 0.3),
}


def make(
    stride: int, height: int = 5, width: int = 7, dtype: torch.dtype = torch.float32, ignore: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (2, 5, h, w), labels whose size need not be a multiple of the stride, and weights of pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, height, width, generator=generator, dtype=torch.float64)
    size = (2, max(height * stride - 1, 1), max(width * stride - 2, 1))
    labels = torch.randint(5, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 0.2] = ignore
    weights = torch.rand(size, generator=generator, dtype=torch.float64) * 3
    return logits.to(dtype).requires_grad_(), labels, weights.to(dtype)


def plain(
    loss: nn.Module, logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None = None
) -> Tensor:
    large = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    return loss(large[..., : labels.shape[1], : labels.shape[2]], labels, weights)


@pytest.mark.parametrize("chunk", [1, 1 << 18], ids=["row by row", "whole images"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_plain_loss_of_upsampled_logits(
    name: str, stride: int, weighted: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "CHUNK", chunk)
    loss = LOSSES[name]
    logits, labels, weights = make(stride, ignore=loss.ignore_value)
    given = weights if weighted else None
    assert can_fuse(loss, logits)
    found = upsampled_loss(loss, logits, labels, stride, given)
    expected = plain(loss, logits, labels, stride, given)
    torch.testing.assert_close(found, expected)
    ((ours,), (theirs,)) = (torch.autograd.grad(value, [logits]) for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 1)])
def test_maps_of_a_single_row_or_column(size: tuple[int, int]) -> None:
    logits, labels, _ = make(4, *size)
    for loss in (LOSSES["cross_entropy"], LOSSES["hard_pixels"]):
        torch.testing.assert_close(upsampled_loss(loss, logits, labels, 4), plain(loss, logits, labels, 4))


@pytest.mark.parametrize("name", ["cross_entropy", "hard_pixels"])
def test_gradients_are_those_of_differences(name: str) -> None:
    logits, labels, weights = make(2, 3, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda x: upsampled_loss(LOSSES[name], x, labels, 2, weights), [logits])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_loss_in_float32(dtype: torch.dtype, layout: torch.memory_format) -> None:
    logits, labels, _ = make(4)
    half = logits.detach().to(dtype).contiguous(memory_format=layout).requires_grad_()
    same = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = upsampled_loss(LOSSES["hard_pixels"], half, labels, 4)
    expected = plain(LOSSES["hard_pixels"], same, labels, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    ((ours,), (theirs,)) = (torch.autograd.grad(v, [x]) for v, x in ((found, half), (expected, same)))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize("name", ["cross_entropy", "hard_pixels"])
def test_nothing_labelled_is_zero_with_a_gradient_of_zero(name: str) -> None:
    logits, labels, _ = make(4)
    loss = upsampled_loss(LOSSES[name], logits, torch.full_like(labels, 255), 4)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_finite_shows_in_the_loss(name: str, bad: float) -> None:
    loss = LOSSES[name]
    logits, labels, _ = make(4, ignore=loss.ignore_value)
    with torch.no_grad():
        logits[1, 2, 3, 4] = bad
    assert not plain(loss, logits, labels, 4).isfinite()
    assert not upsampled_loss(loss, logits, labels, 4).isfinite()


@pytest.mark.parametrize("wrong", [5, -3])
def test_a_label_that_is_no_class_is_an_error(wrong: int) -> None:
    logits, labels, _ = make(4)
    labels[0, 0, 0] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        upsampled_loss(LOSSES["cross_entropy"], logits, labels, 4)


def test_the_hardest_are_those_of_a_sort_and_equal_ones_share() -> None:
    losses = torch.tensor([[3.0, 1.0, 2.0], [2.0, 0.0, 2.0]])
    assert hardest(losses, 1).tolist() == [[1, 0, 0], [0, 0, 0]]
    expected = torch.tensor([[1.0, 0, 1 / 3], [1 / 3, 0, 1 / 3]]) / 2
    torch.testing.assert_close(hardest(losses, 2), expected)
    for count in range(1, 7):
        mean = losses.flatten().sort(descending=True).values[:count].mean()
        torch.testing.assert_close((losses * hardest(losses, count)).sum(), mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [0.5, 0.2, 0.01, 0.001, 1e-5])
def test_where_all_losses_are_equal_the_hardest_cost_as_much(top_k: float, dtype: torch.dtype) -> None:
    logits, labels = torch.zeros(1, 3, 250, 250, dtype=dtype), torch.ones(1, 1000, 1000, dtype=torch.long)
    found = upsampled_loss(HardPixelMining(255, top_k), logits, labels, 4).item()
    assert found == pytest.approx(math.log(3), rel=1e-6 if dtype is torch.float32 else 1e-12)


def test_other_losses_and_other_devices_are_left_to_the_plain_way() -> None:
    class Own(HardPixelMining):
        pass

    assert not can_fuse(Own(255), torch.zeros(1))
    assert not can_fuse(nn.CrossEntropyLoss(), torch.zeros(1))
    watched = PixelCrossEntropy(255)
    assert can_fuse(watched, torch.zeros(1))
    watched.register_forward_hook(lambda *_: None)
    assert not can_fuse(watched, torch.zeros(1))
    assert not can_fuse(HardPixelMining(255), torch.zeros(1, device="meta"))


@pytest.mark.parametrize("name", ["cross_entropy", "hard_pixels"])
def test_no_gradient_is_made_where_none_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, _ = make(4)
    monkeypatch.setattr(fused_loss._Upsampled, "_add", None)
    with torch.no_grad():
        found = upsampled_loss(LOSSES[name], logits, labels, 4)
    torch.testing.assert_close(found, plain(LOSSES[name], logits, labels, 4))
