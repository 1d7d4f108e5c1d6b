"""Layers have Detectron2's parameters, initialisation and outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance.runtimes import golden, load, needs_detectron2, plain
from tests.conformance.tensors import assert_close, digest, largest_difference, names

NORMS = ["", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN"]
ASPPS: dict[str, dict[str, Any]] = {
    "global pooling": {},
    "pooling windows": {"pool_kernel_size": (4, 6), "dropout": 0.1},
    "separable": {"use_depthwise_separable_conv": True, "pool_kernel_size": (4, 3)},
}


def features(channels: int = 32, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def modules(layers: Any) -> dict[str, nn.Module]:
    """Return the modules that are compared, made with the same seed."""
    torch.manual_seed(5)
    made = {f"norm {norm or 'none'}": layers.get_norm(norm, 32) or nn.Identity() for norm in NORMS}
    made["convolution"] = layers.Conv2d(
        32, 64, 3, padding=1, norm=layers.get_norm("GN", 64), activation=F.relu
    )
    made["plain convolution"] = layers.Conv2d(32, 8, kernel_size=1, stride=2)
    made["depthwise separable"] = layers.DepthwiseSeparableConv2d(
        32, 16, 5, 2, norm1="BN", activation1=F.relu, norm2="", activation2=None
    )
    for name, extra in ASPPS.items():
        for norm in ("BN", ""):
            made[f"aspp, {name}, norm {norm or 'none'}"] = layers.ASPP(
                32, 16, [1, 2, 3], norm=norm, activation=F.relu, **extra
            )
    return made


def results(layers: Any) -> dict[str, dict[str, Tensor]]:
    """Return parameters, output in training, gradient of the input and output in testing of each module."""
    seen = {}
    for name, module in modules(layers).items():
        x = features().requires_grad_()
        torch.manual_seed(6)
        output = module(x)
        output.square().mean().backward()
        state = {f"state {key}": value for key, value in module.state_dict().items()}
        tested = module.eval()(features())
        assert x.grad is not None
        seen[name] = {**state, "training": output.detach(), "gradient": x.grad, "testing": tested.detach()}
    return seen


def frozen_norms(layers: Any) -> dict[str, Tensor]:
    """Return what frozen batch norms give after loading old and new weights and after conversion."""
    old = layers.FrozenBatchNorm2d(3)
    old.load_state_dict({"weight": torch.tensor([1.0, 2.0, 3.0]), "bias": torch.tensor([0.5, 0.0, -1.0])})
    norm = nn.BatchNorm2d(3, eps=1e-3)
    norm(features(3))
    net = layers.FrozenBatchNorm2d.convert_frozen_batchnorm(
        nn.Sequential(nn.Conv2d(3, 3, 1), copy.deepcopy(norm))
    )
    return {
        "old weights": old(features(3)),
        **{f"old {key}": value for key, value in old.state_dict().items()},
        "converted": net[1](features(3)),
        **{f"converted {key}": value for key, value in net[1].state_dict().items()},
    }


def _refusal(call: Any) -> str:
    with pytest.raises((AssertionError, ValueError)) as caught:
        call()
    return caught.type.__name__


def figures(runtime: str) -> dict[str, Any]:
    layers = load(runtime, "layers")
    frozen = layers.FrozenBatchNorm2d(4)
    aspp = layers.ASPP(4, 4, [1, 2, 3], norm="BN", activation=F.relu, pool_kernel_size=(5, 12))
    shape = layers.ShapeSpec(channels=3, stride=4)
    block = layers.CNNBlockBase(3, 8, 2)
    return {
        "modules": {
            name: {
                "keys": names(seen),
                **{key: digest(value) for key, value in seen.items() if "state" not in key},
            }
            for name, seen in results(layers).items()
        },
        "parameters": {
            name: {key: digest(value.float()) for key, value in module.state_dict().items()}
            for name, module in modules(layers).items()
            if "windows" in name or "depthwise" in name
        },
        "frozen": {key: digest(value.float()) for key, value in frozen_norms(layers).items()},
        "frozen representation": [repr(frozen), frozen._version, list(frozen.state_dict())],
        "aspp that does not fit": _refusal(lambda: aspp(features(4))),
        "aspp of two dilations": _refusal(lambda: layers.ASPP(4, 4, [1, 2], norm="BN", activation=F.relu)),
        "shape": [
            shape.channels,
            shape.height,
            shape.width,
            shape.stride,
            shape == layers.ShapeSpec(3, stride=4),
        ],
        "block": [block.in_channels, block.out_channels, block.stride],
        "no norm": [layers.get_norm(norm, 4) is None for norm in ("", None)],
        "norm from a function": layers.get_norm(lambda channels: nn.BatchNorm2d(channels), 7).num_features,
    }


def test_lite_equals_the_recorded_figures() -> None:
    assert_close(plain(figures("lite")), golden("layers"))


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert_close(plain(figures("detectron2")), golden("layers"))


@needs_detectron2
def test_equal_seeds_give_equal_parameters_outputs_and_gradients() -> None:
    ours, theirs = results(load("lite", "layers")), results(load("detectron2", "layers"))
    assert list(ours) == list(theirs)
    for name in ours:
        exact = 0.0 if name != "norm LN" else 1e-6
        assert largest_difference(ours[name], theirs[name]) <= exact, name


@needs_detectron2
def test_frozen_norms_are_equal() -> None:
    assert (
        largest_difference(frozen_norms(load("lite", "layers")), frozen_norms(load("detectron2", "layers")))
        == 0
    )
