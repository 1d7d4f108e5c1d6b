"""Without a seed a contrast counts its training steps, so that over the steps it reaches the cells of the map."""

import pytest
import torch
from torch import Tensor

from hicl_d2.contrast import Contrast, build_contrast
from hicl_d2.contrast.frame import step_seed

CLASSES, CHANNELS, BUDGET, CELLS = 4, 6, 64, 1536
NAMES = ("hicl", "pixel", "pixel_memory")
ALL = (*NAMES, "multiscale", "region", "contextual")


def make(name: str, **settings: object) -> Contrast:
    torch.manual_seed(0)
    options = {"anchors": BUDGET, "components": BUDGET, "dim": 4, "hidden_dim": 4, "windows": (1, 2)}
    return build_contrast(name, CHANNELS, CLASSES, **{**options, "detach_components": True, **settings})


def make_batch() -> tuple[Tensor, Tensor]:
    """Return features (2, C, 24, 32) and labels of stride 2, in which every class has 384 cells."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(16).expand(2, 48, 64)
    return torch.randn(2, CHANNELS, 24, 32, generator=generator), labels


def reached(contrast: Contrast, steps: int, seed: int | None = None) -> int:
    """Count the cells whose features had a gradient in any of the steps."""
    features, labels = make_batch()
    seen = torch.zeros(2, 24, 32, dtype=torch.bool)
    for _ in range(steps):
        features = features.detach().requires_grad_()
        contrast(features, labels, seed=seed).loss.backward()
        assert features.grad is not None
        seen |= features.grad.abs().sum(1) > 0
    return int(seen.sum())


def expected(steps: int) -> float:
    """Return how many cells that many draws reach in the mean: a share of each class in each step, without returning."""
    missed = (1 - (BUDGET / CLASSES) / (CELLS / CLASSES)) ** steps
    return CELLS * (1 - missed)


@pytest.mark.parametrize("name", NAMES)
def test_other_cells_are_drawn_at_every_step(name: str) -> None:
    for steps in (1, 8, 50):
        assert reached(make(name), steps) == pytest.approx(expected(steps), rel=0.04)
    assert reached(make(name), 50) > 0.8 * CELLS


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_draws_the_same_cells_again(name: str) -> None:
    contrast = make(name)
    assert reached(contrast, 8, seed=5) == BUDGET
    assert contrast.steps == 0


@pytest.mark.parametrize("name", ALL)
def test_a_counted_step_is_the_step_of_its_seed(name: str) -> None:
    counted, seeded = make(name), make(name)
    features, labels = make_batch()
    for step in range(3):
        assert torch.equal(
            counted(features, labels).loss, seeded(features, labels, seed=step_seed(step)).loss
        )
    assert counted.steps == 3


def test_several_maps_are_counted_too() -> None:
    torch.manual_seed(0)
    contrast = build_contrast("multiscale", [CHANNELS, CHANNELS], CLASSES, scale_weights=(1.0, 0.5))  # type: ignore[arg-type]
    features, labels = make_batch()
    for step in range(2):
        contrast([features, features[:, :, ::2, ::2]], labels)
        assert contrast.steps == step + 1


@pytest.mark.parametrize("name", ALL)
def test_evaluation_spends_no_step(name: str) -> None:
    contrast = make(name)
    features, labels = make_batch()
    contrast(features, labels)
    contrast.eval()
    first, second = (contrast(features, labels).loss for _ in range(2))
    assert torch.equal(first, second)
    assert contrast.steps == 1


@pytest.mark.parametrize("name", ALL)
def test_the_count_is_saved_and_a_state_without_it_loads(name: str) -> None:
    first, second, third = make(name), make(name), make(name)
    features, labels = make_batch()
    for _ in range(3):
        first(features, labels)
    state = first.state_dict()
    assert state["steps"] == torch.tensor(3)
    second.load_state_dict(state, strict=True)
    assert second.steps == 3
    assert torch.equal(first(features, labels).loss, second(features, labels).loss)
    del state["steps"]
    third.load_state_dict(state, strict=True)
    assert third.steps == 0


def test_steps_processes_and_seeds_draw_differently() -> None:
    found = {step_seed(step, seed) for step in range(50) for seed in range(50)}
    assert len(found) == 2500
    assert step_seed(0) == 0
    assert step_seed(7, 3) == (3 * 1_000_003 + 7) * 4096
