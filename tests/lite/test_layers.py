"""Layers against closed forms, loops and torch."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.command.errors import InputError
from hicl_d2.lite.layers import (
    ASPP,
    CNNBlockBase,
    Conv2d,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    get_norm,
)
from tests.support.process_group import in_process_group


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained_norm(channels=6, **kwargs):
    norm = nn.BatchNorm2d(channels, **kwargs)
    with torch.no_grad():
        norm.weight.copy_(numbers(channels, seed=1))
        norm.bias.copy_(numbers(channels, seed=2))
    norm(3 * numbers(4, channels, 5, 5) + 1)
    return norm.eval()


def test_a_frozen_norm_equals_the_norm_that_it_was_made_from_with_and_without_gradients():
    norm = trained_norm(eps=1e-3)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(norm))
    x = numbers(2, 6, 4, 4)
    assert torch.equal(frozen(x), norm(x))
    for module in (norm, frozen):
        probe = x.clone().requires_grad_()
        module(probe).square().sum().backward()
        module.seen = probe.grad
    torch.testing.assert_close(frozen.seen, norm.seen)
    assert not list(frozen.parameters())
    assert set(frozen.state_dict()) == set(norm.state_dict())


def test_freezing_shares_nothing_with_the_norm_it_came_from():
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    before = frozen.running_mean.clone()
    norm.train()(numbers(2, 6, 4, 4) + 100)
    assert torch.equal(frozen.running_mean, before)


def test_a_frozen_norm_is_the_identity_at_first_and_half_precision_stays_half():
    frozen = FrozenBatchNorm2d(6)
    x = numbers(2, 6, 4, 4)
    torch.testing.assert_close(frozen(x), x)
    assert frozen(x.bfloat16().requires_grad_()).dtype == torch.bfloat16


@pytest.mark.parametrize("version", [None, 1])
def test_weights_of_early_versions_hold_no_statistics(version):
    frozen = FrozenBatchNorm2d(2)
    frozen.running_mean += 5
    state = {"weight": torch.ones(2), "bias": torch.zeros(2)}
    state = _versioned(state, version)
    frozen.load_state_dict(state)
    assert torch.equal(frozen.running_mean, torch.zeros(2))
    assert torch.equal(frozen.running_var, torch.ones(2))


@pytest.mark.parametrize("version", [2, 3])
def test_weights_of_later_versions_must_hold_statistics(version):
    state = _versioned({"weight": torch.ones(2), "bias": torch.zeros(2)}, version)
    with pytest.raises(RuntimeError, match="running_mean"):
        FrozenBatchNorm2d(2).load_state_dict(state)


def _versioned(state, version):
    loaded = nn.Module().state_dict()
    loaded.update(state)
    loaded._metadata[""] = {} if version is None else {"version": version}
    return loaded


def test_freezing_a_block_stops_its_gradients_and_its_statistics():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 8, 2)
            self.convs = nn.Sequential(
                Conv2d(3, 8, 3, norm=get_norm("SyncBN", 8)), Conv2d(8, 8, 1, norm=get_norm("BN", 8))
            )

        def forward(self, x):
            return self.convs(x)

    block = Block().freeze()
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert [type(conv.norm) for conv in block.convs] == [FrozenBatchNorm2d, FrozenBatchNorm2d]
    before = copy.deepcopy(block.state_dict())
    block.train()(numbers(2, 3, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


@pytest.mark.parametrize("name", ["SyncBN", "nnSyncBN"])
def test_sync_norm_in_one_process_on_the_cpu_is_batch_norm(name):
    norm, plain = get_norm(name, 6), nn.BatchNorm2d(6)
    for _ in range(2):
        x = numbers(4, 6, 5, 5) + 1
        assert torch.equal(norm(x), plain(x))
    assert all(
        torch.equal(a, b)
        for a, b in zip(norm.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert torch.equal(norm.eval()(x), plain.eval()(x))


def test_torch_s_own_sync_norm_accepts_ours_as_it_does_on_a_gpu():
    norm, plain = get_norm("SyncBN", 6), nn.BatchNorm2d(6)
    x = numbers(4, 6, 5, 5) + 1
    assert torch.equal(nn.SyncBatchNorm.forward(norm, x), plain(x))
    assert torch.equal(norm.running_var, plain.running_var)


def _small_net():
    torch.manual_seed(0)
    first = Conv2d(4, 8, 3, norm=get_norm("SyncBN", 8), activation=torch.relu)
    return nn.Sequential(first, Conv2d(8, 8, 1, norm=get_norm("SyncBN", 8)), Conv2d(8, 2, 1)).double()


def _gradients(net, x):
    """Return the gradients of a loss that is a mean over images, so that processes average to the whole."""
    net(x).square().mean().backward()
    return [parameter.grad for parameter in net.parameters()]


@in_process_group
def _train_in_two_processes(rank, folder):
    x = (3 * numbers(6, 4, 5, 5) + 2).double()
    mine = (x[:4], x[4:])[rank].clone().requires_grad_()
    norm = get_norm("SyncBN", 4).double()
    with torch.no_grad():
        norm.weight.copy_(numbers(4, seed=1))
    output = norm(mine)
    (output**3).sum().backward()
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    gradients = [parameter.grad for parameter in norm.parameters()]
    torch.save([output.detach(), mine.grad, gradients, list(norm.buffers())], Path(folder) / f"{rank}.pt")
    torch.save(
        _gradients(DistributedDataParallel(_small_net()), x[3 * rank : 3 * rank + 3]),
        Path(folder) / f"net{rank}.pt",
    )
    # A process group of this kind makes torch's own refuse tensors on the CPU.
    with pytest.raises(ValueError, match="GPU"):
        nn.SyncBatchNorm(4).double()(mine)


def test_sync_norm_over_processes_on_the_cpu_equals_one_process_with_all_images():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_train_in_two_processes, (folder,), nprocs=2)
        parts = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
        trained = [torch.load(Path(folder) / f"net{rank}.pt") for rank in range(2)]
    x = (3 * numbers(6, 4, 5, 5) + 2).double().requires_grad_()
    norm = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(numbers(4, seed=1))
    output = norm(x)
    (output**3).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}  # the statistics are exchanged in float32
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), output, **close)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x.grad, rtol=1e-4, atol=1e-3)
    for part in parts:
        for found, parameter in zip(part[2], norm.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-3)
        for found, buffer in zip(part[3], norm.buffers(), strict=True):
            torch.testing.assert_close(found, buffer, **close)
    expected = _gradients(_small_net(), x.detach())
    for gradients in trained:
        for found, gradient in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_layer_norm_is_over_the_channels_of_each_pixel():
    norm = get_norm("LN", 5)
    with torch.no_grad():
        norm.weight.copy_(numbers(5, seed=1))
    x = numbers(2, 5, 3, 4)
    for b, y, column in [(0, 0, 0), (1, 2, 3)]:
        pixel = x[b, :, y, column]
        expected = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(norm(x)[b, :, y, column], expected)


def test_norms_by_name():
    assert get_norm("", 4) is None
    assert get_norm(None, 4) is None
    assert isinstance(get_norm("BN", 4), nn.BatchNorm2d)
    assert get_norm("GN", 64).num_groups == 32
    assert get_norm(nn.InstanceNorm2d, 4).num_features == 4


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("SyncBn", r"unknown norm 'SyncBn'; did you mean SyncBN\?; known: BN, "),
        ("naiveSyncBN", "needs Detectron2"),
        ("GN", "32 groups, which do not divide 48 channels"),
    ],
)
def test_a_norm_that_cannot_be_made_is_one_line(norm, message):
    with pytest.raises(InputError, match=message) as caught:
        get_norm(norm, 48)
    assert "\n" not in str(caught.value)


def test_a_separable_convolution_is_one_per_channel_and_one_over_channels():
    torch.manual_seed(0)
    layer = DepthwiseSeparableConv2d(3, 5, 3, 2, 2, norm1="", norm2="", activation1=torch.relu)
    x = numbers(1, 3, 7, 7)
    planes = [
        F.conv2d(
            x[:, c : c + 1],
            layer.depthwise.weight[c : c + 1],
            layer.depthwise.bias[c : c + 1],
            padding=2,
            dilation=2,
        )
        for c in range(3)
    ]
    expected = F.conv2d(torch.relu(torch.cat(planes, 1)), layer.pointwise.weight, layer.pointwise.bias)
    torch.testing.assert_close(layer(x), expected)


def test_the_pyramid_joins_five_branches():
    torch.manual_seed(0)
    aspp = ASPP(4, 6, [1, 2, 3], norm="BN", activation=F.relu, dropout=0.1).eval()
    x = numbers(2, 4, 5, 7)
    pooled = aspp.convs[4][1](x.mean((2, 3), keepdim=True)).expand(-1, -1, 5, 7)
    branches = [branch(x) for branch in aspp.convs[:4]]
    assert [branch.dilation for branch in aspp.convs[:4]] == [(1, 1), (1, 1), (2, 2), (3, 3)]
    torch.testing.assert_close(aspp(x), aspp.project(torch.cat([*branches, pooled], 1)))
    assert aspp.convs[4][1].norm is None


def test_image_pooling_in_windows_of_the_training_crop():
    torch.manual_seed(0)
    make = {"norm": "BN", "activation": F.relu}
    windowed, whole = ASPP(4, 6, [1, 2, 3], pool_kernel_size=(3, 4), **make), ASPP(4, 6, [1, 2, 3], **make)
    whole.load_state_dict(windowed.state_dict())
    windowed.eval()
    whole.eval()
    # On a map of the crop's size the window is the whole map ...
    x = numbers(1, 4, 3, 4)
    torch.testing.assert_close(windowed(x), whole(x))
    # ... and on a larger one each output looks at means over windows.
    x = numbers(1, 4, 6, 8)
    means = torch.stack(
        [torch.stack([x[0, :, i : i + 3, j : j + 4].mean((1, 2)) for j in range(5)], 1) for i in range(4)], 1
    )
    pooled = F.interpolate(
        windowed.convs[4][1](means[None]), size=(6, 8), mode="bilinear", align_corners=False
    )
    branches = [branch(x) for branch in windowed.convs[:4]]
    torch.testing.assert_close(windowed(x), windowed.project(torch.cat([*branches, pooled], 1)))


@pytest.mark.parametrize("size", [(2, 4), (3, 2), (4, 4), (3, 6)])
def test_a_map_that_windows_do_not_divide_is_refused_as_in_detectron2(size):
    aspp = ASPP(4, 6, [1, 2, 3], norm="BN", activation=F.relu, pool_kernel_size=(3, 4))
    with pytest.raises(ValueError, match="pooling window"):
        aspp(numbers(2, 4, *size))
