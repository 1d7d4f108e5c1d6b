"""InfoNCE over pairs of embeddings, written out: the loss that the peers share."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PairLoss", "describe", "info_nce"]

# Sentinel for "no such pair" in a row of similarities. Finite, so that a row without any pair keeps a finite
# gradient.
NOTHING = -1e9


class PairLoss(NamedTuple):
    """Hold the loss over pairs and figures about them.

    Attributes:
        loss: 0-d, mean over the anchors that have a positive; 0, with a graph, when none has.
        anchors: 0-d, how many have one.
        positive_similarity: 0-d, detached, mean cosine over the positive pairs; 0 without any.
        negative_similarity: 0-d, detached, mean cosine over the negative pairs; 0 without any.
    """

    loss: Tensor
    anchors: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def info_nce(
    anchors: Tensor,
    anchor_classes: Tensor,
    keys: Tensor,
    key_classes: Tensor,
    temperature: float,
    *,
    negatives: Tensor | None = None,
    negative_classes: Tensor | None = None,
    anchors_are_keys: bool = False,
    hardest: float = 1.0,
) -> PairLoss:
    """Contrast every anchor with its positives, one at a time, against all its negatives.

    For anchor i: the mean over its positives p of -log(exp(z_i.p / T) / (exp(z_i.p / T) + sum over n of
    exp(z_i.n / T))). Positives are the keys of its class, negatives those of other classes. An anchor without
    positives does not count.

    Args:
        anchors: (A, D), rows of length one.
        anchor_classes: (A,) integer; -1 for an empty row, as in the classes of keys and negatives.
        keys: (M, D), rows of length one.
        key_classes: (M,) integer.
        temperature: T.
        negatives: (N, D) to take the negatives from instead of the keys.
        negative_classes: (N,) integer, with ``negatives``.
        anchors_are_keys: whether anchor i is key i, which is then no positive of itself.
        hardest: share, in (0, 1], of each anchor's least similar positives and most similar negatives that is
            kept.
    """
    if negatives is None or negative_classes is None:
        negatives, negative_classes = keys, key_classes
    filled = (anchor_classes >= 0)[:, None]
    positive = filled & (anchor_classes[:, None] == key_classes)
    if anchors_are_keys:
        positive = positive & ~torch.eye(*positive.shape, dtype=torch.bool, device=positive.device)
    negative = filled & (negative_classes >= 0) & (anchor_classes[:, None] != negative_classes)

    scaled = anchors / temperature
    to_keys = scaled @ keys.T
    to_negatives = to_keys if negatives is keys else scaled @ negatives.T
    figures = _mean_where(to_keys, positive, temperature), _mean_where(to_negatives, negative, temperature)
    if hardest < 1:
        to_keys, positive = _keep_top(-to_keys, positive, hardest)
        to_keys = -to_keys
        to_negatives, negative = _keep_top(to_negatives, negative, hardest)

    among = torch.where(negative, to_negatives, NOTHING)
    # One more column, so that logsumexp has something to sum for an anchor or a batch without negatives.
    against = torch.logsumexp(F.pad(among, (0, 1), value=NOTHING), dim=1, keepdim=True)
    term = torch.where(positive, F.softplus(against - to_keys), 0)
    count = positive.sum(1)
    loss = (term.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)
    return PairLoss(loss, (count > 0).sum(), *figures)


def describe(pairs: PairLoss) -> dict[str, Tensor]:
    """Return the diagnostics of ``pairs``."""
    return {
        "hicl/loss": pairs.loss.detach(),
        "hicl/anchors": pairs.anchors,
        "hicl/positive_similarity": pairs.positive_similarity,
        "hicl/negative_similarity": pairs.negative_similarity,
    }


def _keep_top(similarity: Tensor, among: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Sort the pairs ``among`` each row of ``similarity`` (A, M) in descending order; mark the first ``share`` of them.

    Returns the sorted rows and the marks, (A, M) each; the number of marked pairs is rounded up.
    """
    ranked = torch.where(among, similarity, NOTHING).sort(dim=1, descending=True).values
    wanted = (among.sum(1, keepdim=True) * share).ceil()
    return ranked, torch.arange(ranked.shape[1], device=ranked.device) < wanted


def _mean_where(scaled: Tensor, mask: Tensor, temperature: float) -> Tensor:
    total = torch.where(mask, scaled.detach(), 0).sum()
    return total * temperature / mask.sum().clamp(min=1)
