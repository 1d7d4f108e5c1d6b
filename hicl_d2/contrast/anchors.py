"""Balanced sampling under a total budget, and the choice of anchors."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Sample", "balanced_quota", "choose_anchors", "sample_balanced", "wrongly_predicted"]


class Sample(NamedTuple):
    """Hold a sample of fixed size.

    Attributes:
        index: (budget,) int64, positions among the candidates; 0 where not valid.
        group: (budget,) int64, group of each: ascending, then -1 where not valid.
        valid: (budget,) bool: True for the places that hold a candidate, which come first.
    """

    index: Tensor  # type: ignore[assignment]
    group: Tensor
    valid: Tensor


def sample_balanced(
    group: Tensor,
    num_groups: int,
    budget: int,
    generator: torch.Generator,
    *,
    special: Tensor | None = None,
    share: float = 0.5,
) -> Sample:
    """Draw ``budget`` of N candidates at random, without replacement, spread evenly over their groups.

    A group with fewer candidates than its even part gives all that it has, and the others divide the rest
    (`balanced_quota`). The output has a fixed size, and nothing is read back to the host.

    Args:
        group: (N,) integer; -1, or anything outside 0 to num_groups - 1, is no candidate.
        num_groups: G.
        budget: size of the sample.
        generator: on the device of ``group``.
        special: (N,) bool or None. Where given, ``share`` of each group's part is drawn from its special candidates,
            less where it has too few special ones, more where it has too few others.
        share: 0 to 1.
    """
    counts_of = num_groups if special is None else 2 * num_groups
    fine = group.long().clamp(-1, num_groups).int()
    if special is not None:
        fine = fine.mul_(2).add_(special)
    order, bounds = _shuffle_by_group(fine, counts_of, generator)
    counts = bounds.diff()
    if special is None:
        quota = balanced_quota(counts, budget, generator)
    else:
        pairs = counts.view(-1, 2)
        quota = _split_quota(balanced_quota(pairs.sum(1), budget, generator), pairs, share).flatten()
    ends = quota.cumsum(0)
    slot = torch.arange(budget, device=group.device)
    of_group = torch.searchsorted(ends, slot, right=True)
    valid = of_group < counts_of
    first = bounds[:-1] - ends + quota
    position = first[of_group.clamp(max=counts_of - 1)] + slot
    index = order[position.clamp_(max=len(order) - 1)] * valid if group.numel() else torch.zeros_like(slot)
    of_group = of_group if special is None else of_group // 2
    return Sample(index, torch.where(valid, of_group, -1), valid)


def _shuffle_by_group(group: Tensor, num_groups: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sort candidates by group (N,), int32, from -2 to num_groups + 1, in random order inside each group.

    Returns the order (N,) and where each group starts in it (num_groups + 1,). The sort key holds the group in its high
    bits and random bits below, in 32 bits together, because torch sorts those by radix on a CPU.
    """
    bits = 31 - (num_groups + 1).bit_length()
    key = torch.randint(1 << bits, group.shape, generator=generator, device=group.device, dtype=torch.int32)
    ordered, order = key.add_(group << bits).sort(stable=True)
    starts = torch.arange(num_groups + 1, device=group.device, dtype=torch.int32)
    return order, torch.searchsorted(ordered >> bits, starts)


def balanced_quota(counts: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Divide ``budget`` evenly over groups that hold ``counts`` (G,): (G,) int64, at most ``counts``.

    Every group gets the same number, or all that it has if that is less. The remainder of the division goes, one each,
    to groups drawn at random from those that still have candidates.
    """
    ascending = counts.sort().values
    below = ascending.cumsum(0) - ascending
    # The number that each group gets: the greatest that any number of smallest groups, taken whole, leaves the others.
    others = torch.arange(counts.numel(), 0, -1, device=counts.device)
    level = ((budget - below) // others).amax()
    left = budget - torch.minimum(counts, level).sum()
    lottery = torch.rand(counts.shape, generator=generator, device=counts.device)
    place = lottery.add_(counts <= level).argsort().argsort()
    return torch.minimum(counts, level + (place < left))


def _split_quota(quota: Tensor, counts: Tensor, share: float) -> Tensor:
    """Split quotas (G,) over [others, special] candidates (G, 2): (G, 2)."""
    wanted = (quota * share).ceil().long()
    special = torch.minimum(torch.maximum(wanted, quota - counts[:, 0]), counts[:, 1])
    return torch.stack([quota - special, special], dim=1)


def wrongly_predicted(logits: Tensor, classes: Tensor) -> Tensor:
    """Tell where another class scores higher: (B, h, w) bool, from logits (B, K, h, w) and classes (B, h, w).

    False where the class is -1 or outside 0 to K - 1.
    """
    K = logits.shape[1]
    inside = (classes >= 0) & (classes < K)
    own = logits.gather(1, classes.clamp(0, K - 1).long()[:, None])[:, 0]
    return inside & (own < logits.amax(dim=1))


def choose_anchors(
    classes: Tensor,
    num_classes: int,
    budget: int,
    generator: torch.Generator,
    *,
    hard: Tensor | None = None,
    hard_share: float = 0.5,
) -> Sample:
    """Draw anchors from the cells of a batch, balanced over the classes present.

    Args:
        classes: (B, h, w) integer; -1 where a cell is no anchor.
        num_classes: K.
        budget: anchors in the whole batch.
        generator: on the device of ``classes``.
        hard: (B, h, w) bool, wrongly predicted cells, or None.
        hard_share: share of each class's anchors drawn from hard cells where there are enough.

    Returns a sample whose index counts the cells of the flattened (B, h, w) and whose group is the class.
    """
    special = None if hard is None else hard.flatten()
    return sample_balanced(
        classes.flatten(), num_classes, budget, generator, special=special, share=hard_share
    )
