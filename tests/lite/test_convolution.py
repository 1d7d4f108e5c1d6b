"""Convolutions with norm and activation: those of torch, in whatever form they are computed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from hicl_d2.lite.convolution import Conv2d
from hicl_d2.lite.layers import FrozenBatchNorm2d, get_norm


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_convolution_applies_norm_then_activation():
    torch.manual_seed(0)
    layer = Conv2d(3, 4, 3, padding=1, bias=False, norm=nn.GroupNorm(2, 4), activation=torch.relu)
    x = numbers(2, 3, 6, 6)
    expected = torch.relu(layer.norm(F.conv2d(x, layer.weight, padding=1)))
    assert torch.equal(layer(x), expected)
    assert list(layer.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    assert layer(x[:0]).shape == (0, 4, 6, 6)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", "LN", ""])
@pytest.mark.parametrize("activation", [F.relu, F.relu6, torch.relu, nn.ReLU(), torch.tanh])
def test_an_activation_that_overwrites_changes_neither_values_nor_gradients(norm, activation):
    torch.manual_seed(0)
    layer = Conv2d(3, 32, 3, norm=get_norm(norm, 32), activation=activation)
    x, kept = numbers(2, 3, 6, 6), []

    def outcome():
        probe = x.clone().requires_grad_()
        y = layer(probe)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [probe, *layer.parameters()])]

    expected = outcome()
    if layer.norm is not None:
        layer.norm.register_forward_hook(lambda _, __, output: kept.append(output))
    found = outcome()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    given = kept[0] if kept else nn.Conv2d.forward(layer, x)  # whoever looks at it sees what the norm gave
    assert given.min() < 0
    assert torch.equal(activation(given), found[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"groups": 2},
        {"kernel_size": 3, "padding": 1},
    ],
    ids=str,
)
def test_a_convolution_of_pixels_in_rows_equals_torch_s_in_double_precision(options):
    layer = Conv2d(6, 8, **{"kernel_size": 1, **options}).to(memory_format=torch.channels_last)
    x = numbers(2, 6, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    plain = nn.Conv2d(6, 8, **{"kernel_size": 1, **options}).double()
    plain.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    other = x.detach().double().contiguous().requires_grad_()
    for model, probe in ((layer, x), (plain, other)):
        out = model(probe)
        (out * numbers(*out.shape, seed=1)).sum().backward()
    torch.testing.assert_close(layer(x).double(), plain(other), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), other.grad, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_a_pointwise_convolution_stays_one_where_it_is_traced_and_takes_autocast_s_precision():
    layer = Conv2d(6, 8, 1).to(memory_format=torch.channels_last)
    x = numbers(2, 6, 5, 7).to(memory_format=torch.channels_last)
    assert "aten::_convolution" in str(torch.jit.trace(layer, x).inlined_graph)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), rtol=0.02, atol=0.02)


def fixed_norm(channels, frozen, seed=1, **settings):
    norm = nn.BatchNorm2d(channels, **settings)
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.dim():
                value.copy_(
                    numbers(channels, seed=seed).abs() + 0.5
                    if "var" in name
                    else numbers(channels, seed=seed)
                )
    return FrozenBatchNorm2d.convert_frozen_batchnorm(norm) if frozen else norm.eval()


FOLDED = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "bias": False},
    {"kernel_size": 1},
    {"kernel_size": 5, "groups": 6, "padding": 2},
    {"kernel_size": 3, "groups": 2, "dilation": 2},
]


@pytest.fixture
def calls(monkeypatch):
    """Return a list that grows by one with each call of a fixed norm, none of which is watched for it."""
    calls = []
    for kind in (nn.BatchNorm2d, FrozenBatchNorm2d):
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda norm, x, forward=forward: calls.append(norm) or forward(norm, x)
        )
    return calls


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "eval"])
@pytest.mark.parametrize("options", FOLDED, ids=str)
def test_a_fixed_norm_is_folded_into_the_weights_where_nobody_asks_for_a_gradient(options, frozen, calls):
    layer = Conv2d(6, 6, norm=fixed_norm(6, frozen, eps=1e-3), activation=F.relu6, **options).double()
    x = numbers(2, 6, 24, 32).double().to(memory_format=torch.channels_last)
    expected = F.relu6(layer.norm(nn.Conv2d.forward(layer, x)))
    calls.clear()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach())
        assert not calls
        torch.testing.assert_close(layer(x[:, :, :9, :9].contiguous()), layer(x[:, :, :9, :9]))
        assert calls  # not folded in another layout
    layer.requires_grad_(False)
    calls.clear()
    torch.testing.assert_close(layer(x), expected.detach())
    assert not calls
    probe = x.clone().requires_grad_()
    torch.testing.assert_close(layer(probe), expected)
    assert len(calls) == 1
    assert torch.autograd.grad(layer(probe).sum(), [probe])[0].abs().sum() > 0


@pytest.mark.parametrize("trained", ["weight", "bias", "norm.weight", "norm.bias"])
def test_whatever_is_trained_beside_a_fixed_norm_gets_its_gradient(trained):
    layer = Conv2d(6, 6, 3, norm=fixed_norm(6, False)).double().requires_grad_(False)
    parameter = layer.get_parameter(trained).requires_grad_()
    x = numbers(1, 6, 32, 32).double().to(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(layer(x).square().sum(), [parameter])
    (expected,) = torch.autograd.grad(layer.norm(nn.Conv2d.forward(layer, x)).square().sum(), [parameter])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", ["GN", "LN", "SyncBN", ""])
def test_other_norms_and_training_are_not_folded(norm):
    torch.manual_seed(0)
    layer = Conv2d(32, 32, 1, norm=get_norm(norm, 32)).eval()
    x = numbers(1, 32, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = nn.Conv2d.forward(layer, x)
        assert torch.equal(layer(x), expected if layer.norm is None else layer.norm(expected))
        training = Conv2d(32, 32, 1, norm=nn.BatchNorm2d(32)).train()
        before = copy.deepcopy(training.norm.state_dict())
        training(x)
        assert not torch.equal(before["running_mean"], training.norm.running_mean)
        plain = Conv2d(32, 32, 1, norm=nn.BatchNorm2d(32, affine=False, track_running_stats=False)).eval()
        mean = plain(x).mean((0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros(32), rtol=0, atol=1e-5)


def test_whoever_looks_at_a_norm_sees_its_output_and_large_weights_are_left_alone(calls):
    layer = Conv2d(6, 6, 3, norm=fixed_norm(6, True), activation=F.relu)
    large, small = (numbers(1, 6, side, side).to(memory_format=torch.channels_last) for side in (32, 8))
    with torch.no_grad():
        layer(large)
        assert len(calls) == 0
        layer(small)
        assert len(calls) == 1
        seen = []
        handle = layer.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        layer(large)
        assert torch.equal(seen.pop(), nn.Conv2d.forward(layer, large))
        handle.remove()
        layer.norm.register_forward_hook(lambda _, __, output: seen.append(output))
        result = layer(large)
    assert len(seen) == 1
    assert torch.equal(result, seen[0].relu())


def test_a_folded_convolution_takes_autocast_s_precision(calls):
    layer = Conv2d(6, 6, 3, norm=fixed_norm(6, True))
    x = numbers(1, 6, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert not calls
    assert half.dtype is torch.bfloat16
    with torch.no_grad():
        exact = layer.norm(nn.Conv2d.forward(layer, x))
    assert float((half - exact).norm()) < 0.01 * float(exact.norm())


WATCHERS = {
    "forward hook": lambda norm, seen: norm.register_forward_hook(lambda *_: seen.append(1)),
    "forward pre-hook": lambda norm, seen: norm.register_forward_pre_hook(lambda *_: seen.append(1)),
    "backward hook": lambda norm, seen: norm.register_full_backward_hook(lambda *_: seen.append(1)),
    "backward pre-hook": lambda norm, seen: norm.register_full_backward_pre_hook(lambda *_: seen.append(1)),
    "hook of all modules": lambda norm, seen: register_module_forward_hook(
        lambda module, *_: seen.append(1) if module is norm else None
    ),
    "backward hook of all modules": lambda norm, seen: register_module_full_backward_hook(
        lambda module, *_: seen.append(1) if module is norm else None
    ),
}


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
def test_a_watched_norm_trains_as_one_that_is_not(norm, watcher):
    torch.manual_seed(0)
    layer = Conv2d(3, 32, 3, norm=get_norm(norm, 32), activation=F.relu)
    x = numbers(2, 3, 40, 40).to(memory_format=torch.channels_last).requires_grad_()

    def gradients():
        return torch.autograd.grad(layer(x).square().sum(), layer.parameters())

    expected, seen = gradients(), []
    handle = WATCHERS[watcher](layer.norm, seen)
    try:
        found = gradients()
        assert len(seen) == 1
        with torch.no_grad():
            layer.eval()(x)
        assert len(seen) == 1 + ("backward" not in watcher)
    finally:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_forward_that_was_put_in_a_norm_s_place_is_called(norm):
    layer = Conv2d(3, 32, 3, norm=get_norm(norm, 32), activation=F.relu).eval()
    layer.norm.forward = lambda x: x + 1
    x = numbers(2, 3, 40, 40).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(layer(x), F.relu(nn.Conv2d.forward(layer, x) + 1))
