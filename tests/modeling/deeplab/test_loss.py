"""Losses per pixel against torch and against a sort."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.modeling.deeplab.loss import HardPixelMining, PixelCrossEntropy, build_loss


def problem(dtype=torch.float32, ignore_value=255):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 5, (2, 7, 9), generator=generator)
    labels[:, :2] = ignore_value
    return logits, labels


def sorted_losses(logits, labels, weights=1.0):
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=255) * weights
    return losses.flatten().sort(descending=True).values


def test_cross_entropy_is_torch_s_mean_over_labelled_pixels():
    logits, labels = problem()
    found = PixelCrossEntropy(255)(logits, labels)
    expected = nn.CrossEntropyLoss(ignore_index=255)(logits, labels)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_weights_multiply_the_loss_of_each_pixel():
    logits, labels = problem()
    weights = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(1))
    losses = sorted_losses(logits, labels, weights)
    torch.testing.assert_close(
        PixelCrossEntropy(255)(logits, labels, weights), losses.sum() / (labels != 255).sum()
    )
    count = int(0.3 * losses.numel())
    torch.testing.assert_close(HardPixelMining(255, 0.3)(logits, labels, weights), losses[:count].mean())


@pytest.mark.parametrize("top_k", [0.01, 0.2, 0.5, 0.9, 1.0])
def test_hard_pixel_mining_averages_the_largest_losses_of_all_pixels(top_k):
    logits, labels = problem()
    losses = sorted_losses(logits, labels)
    found = HardPixelMining(255, top_k)(logits, labels)
    expected = losses[: int(top_k * losses.numel())].mean()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_class_weights_scale_the_losses():
    logits, labels = problem()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0])
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="none", ignore_index=255).mean()
    loss = HardPixelMining(255, 1.0, weights)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert not loss.state_dict()


@pytest.mark.parametrize("weights", [[1.0, 0.0, 2.0, 1.0, 0.5], [0.3] * 5])
def test_class_weights_of_cross_entropy_are_torch_s(weights):
    logits, labels = problem()
    loss = build_loss("cross_entropy", 255, class_weights=weights)
    expected = nn.CrossEntropyLoss(weight=torch.tensor(weights), ignore_index=255)(logits, labels)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert not loss.state_dict()


def test_classes_that_weigh_nothing_give_zero():
    logits, labels = problem()
    labels[labels != 255] = 1
    assert build_loss("cross_entropy", 255, class_weights=[1.0, 0.0, 1.0, 1.0, 1.0])(logits, labels) == 0


@pytest.mark.parametrize("loss", [PixelCrossEntropy(255), HardPixelMining(255, 0.2), HardPixelMining(255)])
@pytest.mark.parametrize("weighted", [False, True])
def test_where_every_pixel_is_ignored_the_loss_is_zero_with_a_graph(loss, weighted):
    logits, labels = problem()
    found = loss(logits, torch.full_like(labels, 255), torch.ones(2, 7, 9) if weighted else None)
    assert found == 0
    found.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_an_image_of_few_pixels_still_has_a_hardest_one():
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])
    labels = torch.tensor([[[0, 1]]])
    torch.testing.assert_close(HardPixelMining(255, 0.2)(logits, labels), torch.tensor(2.0).log())


@pytest.mark.parametrize("name", ["cross_entropy", "hard_pixel_mining"])
def test_losses_are_in_float32_whatever_the_logits(name):
    logits, labels = problem(torch.bfloat16)
    found = build_loss(name, 255)(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, build_loss(name, 255)(logits.float(), labels))


def test_losses_by_name():
    assert build_loss("hard_pixel_mining", 255).top_k == 0.2
    assert build_loss("hard_pixel_mining", 255, 0.4).top_k == 0.4
    with pytest.raises(
        InputError, match="LOSS_TYPE is 'focal'; it must be cross_entropy or hard_pixel_mining"
    ):
        build_loss("focal", 255)
    with pytest.raises(InputError, match="LOSS_TOP_K is 20"):
        build_loss("hard_pixel_mining", 255, 20)
