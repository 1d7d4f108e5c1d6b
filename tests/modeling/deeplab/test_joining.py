"""A decoder's step without the upsampled map: equal to upsampling, joining and convolving."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.d2.layers import Conv2d, get_norm
from hicl_d2.modeling.deeplab import joining
from hicl_d2.modeling.deeplab.head import make_two_convolutions
from hicl_d2.modeling.deeplab.joining import join

FINE, COARSE, OUT = 5, 24, 6
# Sizes (h, w) and (H, W): strides that differ by axis, no whole number, one row, one column, the shapes of DeepLabV3+.
SIZES = [
    ((4, 6), (16, 24)),
    ((6, 8), (48, 64)),
    ((5, 7), (18, 29)),
    ((3, 5), (12, 40)),
    ((1, 6), (4, 24)),
    ((5, 1), (20, 4)),
    ((2, 2), (5, 5)),
]


def make_map(channels: int, size: tuple[int, int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(
        2, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return values.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def make_convolutions(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    first = Conv2d(FINE + COARSE, OUT, 3, padding=1, **settings)
    second = Conv2d(OUT, OUT, 3, padding=1, activation=F.relu)
    return nn.Sequential(first, second).double()


def plain(convolutions: nn.Module, fine: Tensor, coarse: Tensor) -> Tensor:
    upsampled = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    result: Tensor = convolutions(torch.cat([fine, upsampled], 1))
    return result


def outcome(
    way: Callable[..., Tensor], convolutions: nn.Module, fine: Tensor, coarse: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the output, the gradients of both maps and all parameters, and the buffers after it."""
    convolutions = copy.deepcopy(convolutions)
    y = way(convolutions, fine, coarse)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(
        y.dtype
    )
    gradients = torch.autograd.grad(y, [fine, coarse, *convolutions.parameters()], weights)
    return y, list(gradients), list(convolutions.buffers())


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the coarse maps that a convolution sees at their own size."""
    seen: list[tuple[int, ...]] = []
    whole = joining._joined_first

    def count(convolution: Conv2d, fine: Tensor, coarse: Tensor) -> Tensor:
        seen.append(tuple(coarse.shape))
        return whole(convolution, fine, coarse)

    monkeypatch.setattr(joining, "_joined_first", count)
    return seen


@pytest.mark.parametrize(
    "settings", [{}, {"bias": False, "norm": "BN", "activation": F.relu}], ids=["bias", "norm"]
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_plain_way_with_its_gradients_and_statistics(
    sizes: Any, settings: dict[str, Any], splits: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_DEARER", 0.0)
    if "norm" in settings:
        settings = {**settings, "norm": get_norm(settings["norm"], OUT)}
    convolutions = make_convolutions(**settings)
    fine, coarse = make_map(FINE, sizes[1], 1), make_map(COARSE, sizes[0], 2)
    found, expected = (outcome(way, convolutions, fine, coarse) for way in (join, plain))
    torch.testing.assert_close(found, expected)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert splits == [tuple(coarse.shape)]


def test_a_head_s_two_convolutions_are_split_where_that_is_cheaper(splits: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    convolutions = make_two_convolutions(48 + 96, 96, 96, "BN", False).double()
    for scale, is_split in ((8, True), (4, True), (2, True), (1, False)):
        fine, coarse = make_map(48, (24, 32), 1), make_map(96, (24 // scale, 32 // scale), 2)
        splits.clear()
        torch.testing.assert_close(*(outcome(way, convolutions, fine, coarse) for way in (join, plain)))
        assert bool(splits) == is_split


class Doubling(Conv2d):
    """A convolution with a forward of its own, as an adapter has."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "first",
    [
        Conv2d(FINE + COARSE, OUT, 3, padding=2, dilation=2),
        Conv2d(FINE + COARSE, OUT, 3, padding=1, padding_mode="reflect"),
        Conv2d(FINE + COARSE, OUT, 3),
        Conv2d(FINE + COARSE, OUT, 3, padding=1, stride=2),
        Conv2d(FINE + COARSE, FINE + COARSE, 3, padding=1, groups=FINE + COARSE),
        Conv2d(FINE + COARSE, OUT, 1),
        Conv2d(FINE + COARSE, OUT, 5, padding=2),
        nn.Conv2d(FINE + COARSE, OUT, 3, padding=1),
        Doubling(FINE + COARSE, OUT, 3, padding=1),
    ],
    ids=str,
)
def test_other_convolutions_see_the_upsampled_map(first: nn.Module, splits: list[tuple[int, ...]]) -> None:
    convolutions = nn.Sequential(first).double()
    fine, coarse = make_map(FINE, (24, 32), 1), make_map(COARSE, (6, 8), 2)
    torch.testing.assert_close(*(outcome(way, convolutions, fine, coarse) for way in (join, plain)))
    assert splits == []


class Residual(nn.Sequential):
    """Convolutions with a forward of their own, which adds the joined map to what they make of it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y + x.mean(1, keepdim=True)


@pytest.mark.parametrize("convolutions", [Residual(*make_convolutions()), nn.Sequential()], ids=str)
def test_another_forward_of_the_convolutions_is_given_the_joined_map(
    convolutions: nn.Module, splits: list[tuple[int, ...]]
) -> None:
    fine, coarse = make_map(FINE, (24, 32), 1), make_map(COARSE, (6, 8), 2)
    torch.testing.assert_close(*(outcome(way, convolutions, fine, coarse) for way in (join, plain)))
    assert splits == []


@pytest.mark.parametrize("place", ["", "0"], ids=["both", "the first"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_given_the_joined_map(place: str, kind: str, splits: list[tuple[int, ...]]) -> None:
    convolutions = make_convolutions()
    fine, coarse = make_map(FINE, (24, 32), 1), make_map(COARSE, (6, 8), 2)
    join(convolutions, fine, coarse)
    assert splits == [tuple(coarse.shape)]
    seen: list[Tensor] = []
    handle = getattr(convolutions.get_submodule(place), kind)(lambda _, args, *__: seen.append(args[0]))
    join(convolutions, fine, coarse)
    upsampled = F.interpolate(coarse, size=(24, 32), mode="bilinear", align_corners=False)
    assert torch.equal(seen[0], torch.cat([fine, upsampled], 1))
    assert len(splits) == 1
    handle.remove()
    join(convolutions, fine, coarse)
    assert len(splits) == 2


def test_a_forward_that_was_put_in_a_convolution_s_place_is_called(splits: list[tuple[int, ...]]) -> None:
    convolutions: Any = make_convolutions()
    fine, coarse = make_map(FINE, (24, 32), 1), make_map(COARSE, (6, 8), 2)
    own = convolutions[0].forward
    convolutions[0].forward = lambda x: 2 * own(x)
    torch.testing.assert_close(join(convolutions, fine, coarse), plain(convolutions, fine, coarse))
    assert splits == []


@pytest.mark.parametrize("which", ["fine", "coarse", "both"])
def test_contiguous_maps_are_computed_as_detectron2_does_bit_for_bit(
    which: str, splits: list[tuple[int, ...]]
) -> None:
    convolutions = make_convolutions()
    maps = {"fine": make_map(FINE, (24, 32), 1), "coarse": make_map(COARSE, (6, 8), 2)}
    for name in maps if which == "both" else (which,):
        maps[name] = maps[name].detach().contiguous().requires_grad_()
    torch.testing.assert_close(*(outcome(way, convolutions, **maps) for way in (join, plain)), rtol=0, atol=0)
    assert splits == []


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (48, 64), (18, 29), (30, 40)], ids=str)
def test_in_half_precision_it_is_as_near_to_float32_as_the_plain_way(
    size: tuple[int, int], splits: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_DEARER", 0.0)
    convolutions = make_convolutions(bias=False)[:1].float()
    fine, coarse = make_map(FINE, size, 1, torch.float32), make_map(COARSE, (6, 8), 2, torch.float32)
    y, gradients, _ = outcome(plain, convolutions, fine, coarse)
    exact = [y, *gradients]
    distances = []
    for way in (join, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y, gradients, _ = outcome(way, convolutions, fine, coarse)
        assert y.dtype is torch.bfloat16
        found = [y, *gradients]
        distances.append(
            [float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(found, exact, strict=True)]
        )
    # The weights of other sizes are rounded in half precision.
    assert bool(splits) == (size in [(24, 32), (12, 16), (48, 64)])
    for ours, theirs in zip(*distances, strict=True):
        assert ours < 1.5 * theirs


def test_a_traced_decoder_keeps_its_upsampling() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = make_convolutions()

        def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
            return join(self.both, fine, coarse)

    maps = make_map(FINE, (24, 32), 1).detach(), make_map(COARSE, (6, 8), 2).detach()
    exported = torch.export.export(Decoder(), maps).graph_module.code
    assert "upsample_bilinear2d" in exported
    assert "upsample_bilinear2d" in str(torch.jit.trace(Decoder(), maps).inlined_graph)
