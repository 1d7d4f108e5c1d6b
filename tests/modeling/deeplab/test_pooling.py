"""Image pooling: as the pyramid's own where that accepts the map, and a loop over windows everywhere."""

import copy

import pytest
import torch
from torch.nn import functional as F

from hicl_d2.d2.layers import ASPP
from hicl_d2.modeling.deeplab.pooling import WindowPooling, accept_any_size

WINDOW = (4, 6)


def pyramid(window=WINDOW):
    torch.manual_seed(0)
    return ASPP(3, 8, [1, 2, 3], norm="", activation=F.relu, pool_kernel_size=window, dropout=0.0)


@pytest.mark.parametrize("size", [(4, 6), (8, 6), (4, 18), (12, 12)])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_where_the_window_divides_the_map_nothing_changes_bit_for_bit(size, window):
    plain = pyramid(window)
    ours = accept_any_size(copy.deepcopy(plain))
    maps = [torch.randn(2, 3, *size).requires_grad_() for _ in range(1)] * 2
    outputs = [module(each) for module, each in zip((plain, ours), maps, strict=True)]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(output.square().sum(), maps[0])[0] for output in outputs]
    assert torch.equal(*gradients)
    assert list(plain.state_dict()) == list(ours.state_dict())


def test_the_pyramid_itself_refuses_other_maps():
    with pytest.raises(ValueError, match="divi"):
        pyramid()(torch.zeros(1, 3, 5, 6))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (9, 8), (4, 30), (3, 6), (4, 5), (1, 1), (1, 40), (2, 9)])
def test_it_averages_over_every_window_and_over_all_of_a_smaller_map(size):
    x = torch.randn(2, 3, *size)
    rows, columns = min(WINDOW[0], size[0]), min(WINDOW[1], size[1])
    expected = torch.stack(
        [
            torch.stack(
                [
                    x[..., top : top + rows, left : left + columns].mean((-2, -1))
                    for left in range(size[1] - columns + 1)
                ],
                -1,
            )
            for top in range(size[0] - rows + 1)
        ],
        -2,
    )
    torch.testing.assert_close(WindowPooling(WINDOW, stride=1)(x), expected)


@pytest.mark.parametrize("size", [(5, 7), (3, 9), (1, 1)])
def test_the_means_are_resized_to_the_map_and_joined_as_before(size):
    aspp = accept_any_size(pyramid())
    x = torch.randn(2, 3, *size)
    pooled = aspp.convs[4][1](WindowPooling(WINDOW, stride=1)(x))
    branches = [*(branch(x) for branch in aspp.convs[:4]), F.interpolate(pooled, size, mode="bilinear")]
    torch.testing.assert_close(aspp(x), aspp.project(torch.cat(branches, 1)))


def test_a_map_smaller_than_the_window_is_pooled_as_without_a_window():
    whole, windows = pyramid(None), accept_any_size(pyramid())
    windows.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 3, 5)
    torch.testing.assert_close(windows(x), whole(x))
