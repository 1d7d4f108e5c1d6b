"""Balanced sampling: fair, exact in size, without replacement."""

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.contrast.anchors import balanced_quota, choose_anchors, sample_balanced, wrongly_predicted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 300), st.integers(0, 99))
def test_quotas_fill_to_one_level(counts: list[int], budget: int, seed: int) -> None:
    quota = balanced_quota(torch.tensor(counts), budget, generator(seed)).tolist()
    assert sum(quota) == min(budget, sum(counts))
    assert all(0 <= q <= n for q, n in zip(quota, counts, strict=True))
    short = [q for q, n in zip(quota, counts, strict=True) if q < n]
    if short:  # whoever could give more gives as much as anyone, but for the last one
        assert max(short) - min(short) <= 1
        assert max(quota) <= min(short) + 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_groups_may_be_of_any_integer_type(kind: torch.dtype) -> None:
    group = torch.tensor([0, 255, 1, 1, 255, 2, 0, 100, 2])
    found = sample_balanced(group.to(kind), 3, 6, generator())
    assert torch.equal(found.index, sample_balanced(group, 3, 6, generator()).index)
    assert found.group.tolist() == [0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(
    st.lists(st.integers(-2, 6), min_size=1, max_size=80),
    st.integers(1, 100),
    st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_samples_are_balanced_and_without_replacement(
    groups: list[int], budget: int, share: float | None, seed: int
) -> None:
    group = torch.tensor(groups)
    special = None if share is None else torch.rand(len(groups), generator=generator(seed)) < 0.5
    sample = sample_balanced(group, 5, budget, generator(seed), special=special, share=share or 0.0)
    assert sample.index.shape == sample.group.shape == sample.valid.shape == (budget,)
    chosen = sample.index[sample.valid].tolist()
    available = collections.Counter(g for g in groups if 0 <= g < 5)
    assert len(chosen) == len(set(chosen)) == min(budget, sum(available.values()))
    assert sample.group[sample.valid].tolist() == [groups[i] for i in chosen]
    assert sample.valid.tolist() == sorted(sample.valid.tolist(), reverse=True)
    assert sample.group[sample.valid].tolist() == sorted(sample.group[sample.valid].tolist())
    assert (sample.group[~sample.valid] == -1).all()
    taken = collections.Counter(groups[i] for i in chosen)
    short = [taken[g] for g in available if taken[g] < available[g]]
    if short:
        assert max(taken.values()) <= min(short) + 1
    if special is not None and share is not None:
        for g, number in taken.items():
            specials = [i for i in range(len(groups)) if groups[i] == g and special[i]]
            others = available[g] - len(specials)
            got = sum(1 for i in chosen if groups[i] == g and special[i])
            wanted = -int(-(number * share) // 1)
            assert got == min(max(wanted, number - others), len(specials))


def test_every_candidate_is_as_likely() -> None:
    group = torch.zeros(6, dtype=torch.long)
    drawn = collections.Counter(
        i for seed in range(600) for i in sample_balanced(group, 1, 2, generator(seed)).index.tolist()
    )
    assert all(150 < drawn[i] < 250 for i in range(6))


def test_what_is_left_over_goes_to_any_group() -> None:
    group = torch.arange(5)
    drawn = collections.Counter(
        i for seed in range(300) for i in sample_balanced(group, 5, 2, generator(seed)).index.tolist()
    )
    assert all(70 < drawn[i] < 170 for i in range(5))


def test_the_generator_alone_decides() -> None:
    group = torch.randint(4, (500,))
    state = torch.get_rng_state()
    draws = [sample_balanced(group, 4, 50, generator(seed)).index.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_large_numbers_of_groups_and_candidates() -> None:
    group = torch.randint(1710, (70_000,))
    sample = sample_balanced(group, 1710, 4000, generator())
    taken = torch.bincount(group[sample.index], minlength=1710)
    assert int(taken.min()) >= 2
    assert int(taken.max()) <= 3
    assert sample.valid.all()


def test_hard_anchors_are_wrongly_predicted_cells() -> None:
    classes = torch.randint(-1, 3, (2, 8, 8))
    logits = torch.randn(2, 3, 8, 8)
    hard = wrongly_predicted(logits, classes)
    assert torch.equal(hard, (logits.argmax(1) != classes) & (classes >= 0))
    sample = choose_anchors(classes, 3, 30, generator(), hard=hard, hard_share=0.6)
    assert sample.valid.all()
    assert int(hard.flatten()[sample.index].sum()) == 18
    assert torch.bincount(sample.group).tolist() == [10, 10, 10]


def test_a_tie_of_scores_is_not_wrong() -> None:
    assert not wrongly_predicted(torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.long)).any()


@pytest.mark.parametrize("group", [torch.zeros(0, dtype=torch.long), torch.full((5,), -1)])
def test_no_candidates(group: torch.Tensor) -> None:
    sample = sample_balanced(group, 3, 4, generator(), special=torch.zeros(len(group), dtype=torch.bool))
    assert not sample.valid.any()
    assert sample.index.tolist() == [0] * 4
