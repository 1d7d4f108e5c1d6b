"""A step followed without data: what it asks for by hand, and what the allocator says of the same step."""

import pytest
import torch
from speed.cases import Case, make_batch, make_contrast, make_step
from speed.follow import LooksAtValuesError, follow, operators
from speed.meter import peak_bytes
from torch import nn

CPU = torch.device("cpu")


def test_operators_are_calls_that_compute():
    values, buffer = torch.randn(4, 6, requires_grad=True), torch.zeros(6)
    assert operators(lambda: values.view(6, 4).t()[1:].detach()) == 0
    assert operators(lambda: torch.empty(3)) == 0
    assert operators(lambda: values + 1) == 1
    assert operators(lambda: buffer.add_(1)) == 1
    assert operators(lambda: (values * 2).exp()) == 2
    assert operators(lambda: values.exp().sum().backward()) == 2 + 2  # ones to begin with, and one product


def test_a_gpu_is_asked_for_few_operators_whatever_the_size():
    counts = []
    for case in (
        Case(2, 64, 64, 5, channels=16, anchors=24, components=40),
        Case(4, 256, 64, 9, channels=16, anchors=300, components=600),
    ):
        counts.append(
            operators(make_step(make_contrast("hicl", case), make_batch(case, CPU), torch.contiguous_format))
        )
    assert max(counts) <= 490
    assert max(counts) - min(counts) <= 5


def test_the_most_that_is_held_is_what_lives_at_a_time():
    # exp keeps its result for backward (400 bytes); its sum, and in backward the ones, are one number each; the first
    # gradient is there from the first step, so the second makes one of 400 bytes and adds it.
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(100))
    model.forward = lambda: model.weight.exp().sum()
    found = follow(model, lambda call: call())
    assert found.peak_bytes == 400 + 4 + 4 + 400
    assert found.operators == 2 + 2 + 1
    assert model.weight.grad is None


def test_memory_is_what_the_allocator_says_of_a_step_with_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 32), nn.Softplus())
    followed = follow(model, lambda call: call(torch.randn(512, 64)).square().mean())

    def step():
        model(torch.randn(512, 64)).square().mean().backward()

    step()
    assert followed.peak_bytes == pytest.approx(peak_bytes(step, CPU), rel=0.02)


def test_a_model_that_looks_at_values_is_refused():
    class Looks(nn.Linear):
        def forward(self, rows):
            return super().forward(rows)[rows.sum(1) > 0].sum()

    with pytest.raises(LooksAtValuesError, match="looks at values"):
        follow(Looks(4, 2), lambda call: call(torch.ones(3, 4)))
