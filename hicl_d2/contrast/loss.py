"""The pixel-to-component loss, written as its formula.

For anchor i, with embedding z_i and class y_i, and component j, with embedding c_j and class y_j, let s_ij = z_i.c_j / T.
The positives P_i are the components of class y_i without the anchor's own cell, the negatives N_i those of other classes:

    L_i = sum over p in P_i of  w_ip x -log( exp(s_ip) / (exp(s_ip) + sum over n in N_i of exp(s_in)) )

with weights w_ip that sum to 1 over P_i. The loss is the mean of L_i over the anchors that have positives. With one loss
group per level instead of one for all (`Pairing`), each group has such a loss over its own components, and the loss is
their weighted mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hicl_d2.contrast.components import Components
from hicl_d2.contrast.pairing import Pairing

__all__ = ["LEAST_DIFFICULTY", "Contrasted", "contrast"]

# Least difficulty of a positive, before it is raised to the power of the focus.
LEAST_DIFFICULTY = 1e-3


class Contrasted(NamedTuple):
    """Hold the loss and where it comes from.

    Attributes:
        loss: 0-d, with a graph to the embeddings of anchors and components.
        component_loss: (N,) detached; what each component contributes to the loss as a positive.
        component_weight: (N,) detached; the sum of its weights as a positive.
    """

    loss: Tensor
    component_loss: Tensor
    component_weight: Tensor


def contrast(
    anchors: Tensor, components: Components, pairing: Pairing, temperature: float, focus: float = 0.0
) -> Contrasted:
    """Compute the loss of all pairs of anchor and component at once.

    Args:
        anchors: (A, D) embeddings of length one.
        components: N components.
        pairing: which of them are whose positives, and the weights.
        temperature: T.
        focus: exponent of a positive's difficulty 1 - z.c in its weight; 0 weighs all alike. No gradient passes
            through the weights.
    """
    similarity = anchors @ components.all_rows.t() / temperature
    is_component = components.classes >= 0
    is_own = pairing.own[:, None] == torch.arange(similarity.shape[1], device=similarity.device)
    same_class = (pairing.anchor_class[:, None] == components.classes) & is_component
    difficulty = (1.0 - similarity.detach() * temperature).clamp(min=LEAST_DIFFICULTY).pow(focus)

    loss = similarity.new_zeros(())
    component_loss, component_weight = similarity.new_zeros(2, similarity.shape[1])
    for in_group, anchor_weight in zip(pairing.loss_group.t() > 0, pairing.anchor_weight.t(), strict=True):
        positive = same_class & ~is_own & in_group
        negative = ~same_class & is_component & in_group
        lowest = torch.finfo(similarity.dtype).min
        log_negatives = similarity.masked_fill(~negative, lowest).logsumexp(1, keepdim=True)
        log_probability = similarity - torch.logaddexp(similarity, log_negatives)
        weight = torch.where(positive, pairing.positive_weight * difficulty, 0.0)
        total = weight.sum(1, keepdim=True)
        weight = anchor_weight[:, None] * weight / torch.where(total > 0, total, 1.0)
        pair_loss = -weight * torch.where(positive, log_probability, 0.0)
        loss = loss + pair_loss.sum()
        component_loss = component_loss + pair_loss.detach().sum(0)
        component_weight = component_weight + weight.sum(0)
    return Contrasted(loss, component_loss, component_weight)
