"""The loss, plain and fused: the same in value and gradient for any pairing, and equal to the formula pair by pair."""

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast import candidates, components, fused, loss, pruning
from hicl_d2.contrast.anchors import Sample
from hicl_d2.contrast.components import Components
from hicl_d2.contrast.operations import OPERATIONS
from hicl_d2.contrast.pairing import Pairing, find_own, pair

K, LEVELS, CELLS, D = 4, 3, 50, 5
CASES: dict[str, dict[str, Any]] = {
    "joint": {},
    "weights": {"level_weights": (1.0, 3.0, 0.5)},
    "separate": {"separate": True},
    "separate_weights": {"separate": True, "level_weights": (1.0, 3.0, 0.5)},
    "focus": {"focus": 1.5},
    "focus_separate": {"focus": 1.0, "separate": True},
    "bank": {"recalled": 30},
    "bank_separate": {"recalled": 30, "separate": True},
    "cold": {"temperature": 0.02},
    "cold_separate": {"temperature": 0.02, "separate": True},
    "cold_bank_focus": {"temperature": 0.04, "recalled": 30, "focus": 1.0},
    "many_anchors": {"anchors": 300},
    "no_cells": {"cells": False},
}
both = pytest.mark.parametrize("contrast", [loss.contrast, fused.contrast], ids=["plain", "fused"])


def make_case(
    dtype: torch.dtype,
    *,
    anchors: int = 20,
    recalled: int = 0,
    separate: bool = False,
    level_weights: tuple[float, ...] = (1.0,) * LEVELS,
    cells: bool = True,
    temperature: float = 0.2,
    focus: float = 0.0,
) -> tuple[Tensor, Components, Pairing, float, float]:
    """Make anchors of all classes but 3, components of all but 2, and some empty places of both; cell i has class i % K."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return F.normalize(torch.randn(count, D, generator=generator, dtype=torch.float64), dim=1).to(dtype)

    def grouped(count: int, missing: int, empty: int) -> tuple[Tensor, Tensor]:
        """Draw cells of all classes but one, grouped by class, then empty places: cells and classes."""
        some = torch.randperm(CELLS, generator=generator).repeat(10)
        some = some[some % K != missing][:count]
        some = some[(some % K).argsort(stable=True)]
        return F.pad(some, (0, empty)), F.pad(some % K, (0, empty), value=-1)

    index, group = grouped(anchors - 3, 3, 3)
    sample = Sample(index, group, group >= 0)
    at, of_component = grouped(25, 2, 4)
    levels = torch.randint(LEVELS, (29,), generator=generator) * (of_component >= 0)
    at = torch.where((levels == 0) & (of_component >= 0), at, -1)
    found = Components(rows(29).requires_grad_(), of_component, levels, at if cells else None)
    if recalled:
        ring = torch.arange(K).repeat_interleave(recalled // K)
        filled = torch.rand(len(ring), generator=generator) < 0.6
        found = found.join(
            Components(
                rows(len(ring)),
                torch.where(filled, ring, -1),
                torch.randint(LEVELS, ring.shape, generator=generator) * filled,
                runs=(ring,),
            )
        )
    pairing = pair(
        sample,
        found,
        CELLS,
        K,
        torch.tensor(level_weights, dtype=dtype),
        separate=separate,
        uniform=len(set(level_weights)) == 1,
    )
    return rows(anchors).requires_grad_(), found, pairing, temperature, focus


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"), [(torch.float64, 1e-10, 1e-9), (torch.float32, 1e-6, 1e-5)]
)
@pytest.mark.parametrize("case", CASES)
def test_both_forms_are_equal(case: str, dtype: torch.dtype, value: float, gradient: float) -> None:
    made = make_case(dtype, **CASES[case])
    plain, fast = loss.contrast(*made), fused.contrast(*made)
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(one, other, rtol=value, atol=value)
    inputs = [made[0], made[1].rows]
    scale = 0.2 / made[3]
    for one, other in zip(
        torch.autograd.grad(plain.loss, inputs), torch.autograd.grad(fast.loss, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=gradient, atol=gradient * scale)


@both
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula_pair_by_pair(case: str, contrast: Any) -> None:
    settings = CASES[case]
    anchors, found, pairing, temperature, focus = made = make_case(torch.float64, **settings)
    weights = settings.get("level_weights", (1.0,) * LEVELS)
    classes, levels = found.classes.tolist(), found.levels.tolist()
    groups = [[level] for level in range(LEVELS)] if settings.get("separate") else [list(range(LEVELS))]
    total, total_weight = 0.0, 0.0
    for group in groups:
        losses = []
        for i, own_class in enumerate(pairing.anchor_class.tolist()):
            z = (anchors[i] @ found.all_rows.t() / temperature).tolist()
            members = [
                j for j, c in enumerate(classes) if c >= 0 and levels[j] in group and j != pairing.own[i]
            ]
            positives = [j for j in members if classes[j] == own_class]
            negatives = [math.exp(z[j]) for j in members if classes[j] != own_class]
            weight = {
                j: (1.0 if len(group) == 1 else weights[levels[j]])
                * max(1 - temperature * z[j], 1e-3) ** focus
                for j in positives
            }
            terms = [
                weight[j] * -math.log(math.exp(z[j]) / (math.exp(z[j]) + sum(negatives))) for j in positives
            ]
            if positives:
                losses.append(sum(terms) / sum(weight.values()))
        if losses:
            group_weight = weights[group[0]] if len(group) == 1 else 1.0
            total += group_weight * sum(losses) / len(losses)
            total_weight += group_weight
    result = contrast(*made)
    assert result.loss.item() == pytest.approx(total / total_weight, rel=1e-10)
    assert result.component_loss.sum().item() == pytest.approx(result.loss.item(), rel=1e-10)
    assert result.component_weight.sum().item() == pytest.approx(1.0)


@both
@pytest.mark.parametrize("case", [case for case in CASES if "focus" not in case])
def test_gradcheck(case: str, contrast: Any) -> None:
    anchors, found, *rest = make_case(torch.float64, **{"anchors": 8, **CASES[case]})

    def run(anchors: Tensor, rows: Tensor) -> Tensor:
        result = contrast(
            anchors,
            Components(rows, found.classes, found.levels, found.cells, found.remembered, found.runs),
            *rest,
        )
        scalar: Tensor = result.loss
        return scalar

    assert torch.autograd.gradcheck(run, (anchors, found.rows), atol=1e-6, fast_mode=True)


@both
def test_without_positives_the_loss_is_zero_with_a_graph(contrast: Any) -> None:
    anchors, found, pairing, temperature, _ = make_case(torch.float64)
    nobody = pairing._replace(
        anchor_class=torch.full_like(pairing.anchor_class, -1),
        own=torch.full_like(pairing.own, -1),
        anchor_weight=torch.zeros_like(pairing.anchor_weight),
        weight_per_positive=torch.zeros_like(pairing.weight_per_positive),
    )
    result = contrast(anchors, found, nobody, temperature)
    assert result.loss.item() == 0
    gradients = torch.autograd.grad(result.loss, [anchors, found.rows])
    assert not any(gradient.any() for gradient in gradients)


def test_an_anchor_finds_its_own_cell_alone() -> None:
    anchors = Sample(torch.tensor([3, 0, 5, 0]), torch.tensor([0, 0, 1, -1]), torch.tensor([1, 1, 1, 0]) > 0)
    found = Components(torch.zeros(4, 1), torch.zeros(4).long(), torch.zeros(4).long())
    assert find_own(anchors, found, 6).tolist() == [-1] * 4
    with_cells = Components(found.rows, found.classes, found.levels, torch.tensor([5, -1, 0, 2]))
    assert find_own(anchors, with_cells, 6).tolist() == [-1, 2, 0, -1]


def test_every_fused_function_has_the_name_and_signature_of_its_plain_twin() -> None:
    plain = {"count_labels": candidates, "sum_windows": candidates, "contrast": loss, "ClassScores": pruning}
    plain |= {"gather_windows": components, "gather_cells": components}
    assert {*plain, "embed"} == set(fused.__all__)
    for name, module in plain.items():
        assert inspect.signature(getattr(fused, name)) == inspect.signature(getattr(module, name)), name
    for name in ("count_labels", "ClassScores", "gather_windows", "contrast"):
        assert getattr(OPERATIONS["textbook"], name) is getattr(plain[name], name)
        assert getattr(OPERATIONS["fused"], name) is getattr(fused, name)
