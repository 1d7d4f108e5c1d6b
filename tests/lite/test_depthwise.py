"""Depthwise convolutions: the gradients of torch's own, in the precision that they are asked for."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hicl_d2.engine.precision import keep_depthwise_in_float32
from hicl_d2.lite import depthwise
from hicl_d2.lite.layers import Conv2d, DepthwiseSeparableConv2d

CHANNELS = 6


def make_map(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def make(kernel: Any, **settings: Any) -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(CHANNELS, CHANNELS, kernel, groups=CHANNELS, **settings)


def plain(layer: nn.Conv2d) -> nn.Conv2d:
    """Return torch's own layer of the same weights in double precision."""
    other = nn.Conv2d(
        CHANNELS,
        CHANNELS,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        groups=CHANNELS,
        bias=layer.bias is not None,
    ).double()
    other.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    return other


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of input and parameters; the output's gradient is a part of a larger map."""
    x = x.detach().requires_grad_()
    y = layer(x)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, CHANNELS + 3, *y.shape[2:], generator=generator).to(y.dtype)
    joined = torch.cat([y, y[:, :3]], 1).contiguous(memory_format=torch.channels_last)
    return [y, *torch.autograd.grad((joined * weights).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3, 9])
@pytest.mark.parametrize(
    ("kernel", "padding"),
    [
        (3, 1),
        (5, 2),
        (5, 0),
        (4, 1),
        (7, 3),
        (7, 0),
        ((1, 5), (0, 2)),
        ((5, 1), (2, 0)),
        ((3, 6), (0, 4)),
        (5, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(9, 13), (8, 8), (7, 16)], ids=str)
def test_gradients_are_those_of_torch_in_double_precision(
    size: tuple[int, int], kernel: Any, padding: Any, stride: Any
) -> None:
    layer, x = make(kernel, stride=stride, padding=padding), make_map(*size)
    assert layer.is_fast_depthwise(x)
    expected = gradients(plain(layer), x.double().contiguous())
    for found, wanted in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (3, 2), (9, 2)], ids=str)
@pytest.mark.parametrize("kernel", [5, 7, 9])
def test_a_map_may_be_narrower_than_what_a_kernel_reaches(kernel: int, size: tuple[int, int]) -> None:
    layer, x = make(kernel, padding=kernel // 2), make_map(*size)
    assert layer.is_fast_depthwise(x)
    expected = gradients(plain(layer), x.double().contiguous())
    for found, wanted in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_in_bfloat16_gradients_are_those_of_float32_within_its_rounding(
    kernel: int, stride: int, bias: bool
) -> None:
    layer = make(kernel, stride=stride, padding=kernel // 2, bias=bias)
    x = make_map(12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, x)
    assert found[0].dtype is torch.bfloat16
    assert {each.dtype for each in found[1:]} == {torch.float32}
    for ours, wanted in zip(found, gradients(plain(layer), x.double().contiguous()), strict=True):
        assert float((ours - wanted).detach().norm()) < 0.01 * float(wanted.detach().norm())


@pytest.mark.parametrize(
    ("kernel", "stride", "wanted"),
    [(5, 1, [[5, 3], [5, 2]]), (3, 1, [[3, 3]]), (7, 1, [[7, 3], [7, 3], [7, 1]])],
)
def test_torch_is_asked_for_the_weights_gradient_of_at_most_three_columns(
    kernel: int, stride: int, wanted: list[list[int]]
) -> None:
    layer, x = make(kernel, stride=stride, padding=kernel // 2), make_map(9, 13)
    y = layer(x)
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(y.sum(), [layer.weight])
    asked = [
        each.input_shapes[2][2:]
        for each in profile.function_events
        if each.name == "aten::convolution_backward"
    ]
    assert asked == wanted


def test_only_what_is_asked_for_is_computed_and_frozen_weights_stay_so() -> None:
    layer, x = make(5, padding=2), make_map(9, 13)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    x.requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(layer(x).sum(), [x])[0].double(),
        gradient_of_sum(plain(layer), x),
        rtol=1e-5,
        atol=1e-5,
    )
    with torch.no_grad():
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))


def gradient_of_sum(layer: nn.Module, x: Tensor) -> Tensor:
    probe = x.detach().double().requires_grad_()
    return torch.autograd.grad(layer(probe).sum(), [probe])[0]


def test_gradients_have_gradients() -> None:
    layer, found = make(5, padding=2, stride=2), []
    for model, x in ((layer, make_map(9, 13)), (plain(layer), make_map(9, 13).double())):
        x = x.requires_grad_()
        first = torch.autograd.grad(model(x).square().sum(), [x, model.weight], create_graph=True)
        penalty = torch.stack([each.square().sum() for each in first]).sum()
        found.append([each.double() for each in torch.autograd.grad(penalty, [x, model.weight])])
    for ours, wanted in zip(*found, strict=True):
        assert float((ours - wanted).norm()) < 1e-5 * float(wanted.norm())


def test_transforms_of_functions_go_through_it() -> None:
    layer, x = make(5, padding=2), make_map(9, 13)
    assert layer.is_fast_depthwise(x)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, values, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    wanted = torch.autograd.grad(layer(x).square().sum(), [layer.weight, layer.bias])
    for ours, expected in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kernel", [3, 5])
def test_gradients_of_each_sample_and_forward_mode_equal_torch_s(kernel: int) -> None:
    layer = make(kernel, padding=2, stride=2)
    other, x = plain(layer), make_map(9, 13)

    def of_sample(model: nn.Module, values: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (image[None],)).square().sum()

    def outcomes(model: nn.Module, x: Tensor) -> list[Tensor]:
        values = {name: value.detach() for name, value in model.named_parameters()}
        each = torch.func.vmap(torch.func.grad(partial(of_sample, model)), (None, 0))(values, x)
        found = list(each.values())
        for moved in (("x",), ("weight",), ("bias",), ("x", "weight", "bias")):
            tangents = {name: torch.ones_like(value) * (name in moved) for name, value in values.items()}
            found.append(
                torch.func.jvp(
                    lambda values, x: torch.func.functional_call(model, values, (x,)),
                    (values, x),
                    (tangents, torch.cos(x) * ("x" in moved)),
                )[1]
            )
        return found

    assert layer.is_fast_depthwise(x)
    for ours, wanted in zip(outcomes(layer, x), outcomes(other, x.double()), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(
        tangent, layer(torch.ones_like(x)) - layer.bias.view(-1, 1, 1), rtol=1e-4, atol=1e-5
    )


def test_float16_is_as_exact_as_torch_s() -> None:
    layer, x = make(5, padding=2, stride=2), make_map(12, 16)
    with torch.autocast("cpu", torch.float16):
        found = gradients(layer, x)
    assert found[0].dtype is torch.float16
    for ours, wanted in zip(found, gradients(plain(layer), x.double().contiguous()), strict=True):
        assert float((ours - wanted).detach().norm()) < 0.01 * float(wanted.detach().norm())


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(CHANNELS, CHANNELS, 5, groups=2),
        Conv2d(CHANNELS, 2 * CHANNELS, 5, groups=CHANNELS),
        make(5, dilation=2),
        make(5, padding="same"),
        make(5, padding=2, padding_mode="circular"),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch_and_to_float32(layer: Conv2d) -> None:
    x = make_map(13, 13)
    assert not layer.is_fast_depthwise(x)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    if layer.groups == CHANNELS:
        assert dtype_in_training(layer, x) is torch.float32


def dtype_in_training(layer: nn.Module, x: Tensor) -> torch.dtype:
    """Return the precision of the output where depthwise convolutions without a fast kernel stay in float32."""
    keep_depthwise_in_float32(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = layer(x)
    return y.dtype


def test_half_precision_is_for_maps_in_channels_last() -> None:
    x = make_map(9, 13)
    assert dtype_in_training(make(5, padding=2), x) is torch.bfloat16
    assert dtype_in_training(make(5, padding=2), x.contiguous()) is torch.float32
    both = DepthwiseSeparableConv2d(CHANNELS, CHANNELS, 5, 2)
    assert dtype_in_training(both.depthwise, x) is torch.bfloat16


def test_other_types_and_traced_steps_are_left_to_torch() -> None:
    layer, x = make(5, padding=2), make_map(9, 13)
    assert not depthwise.is_fast(layer, x.double())
    assert not depthwise.is_fast(layer, x.half())
    assert not depthwise.is_fast(layer, x.contiguous())
    assert "aten::_convolution" in str(torch.jit.trace(layer, x).inlined_graph)
