"""The pixel-to-component loss: one autograd function, and the same loss written out plainly.

For anchor i, with embedding z_i and class y_i, and component j, with embedding c_j and class y_j, s_ij = z_i.c_j / T.
Its positives P_i are the components of its class (its own window of one cell left out), its negatives N_i the others:

    L_i = sum over p in P_i of w_ip x log(1 + sum over n in N_i of exp(s_in) / exp(s_ip)),   sum over p of w_ip = 1

which is the mean of -log(exp(s_ip) / (exp(s_ip) + sum over n exp(s_in))) for equal weights w. The loss is the mean of
L_i over the anchors that have positives. Components fall into *blocks*: in the joint form all are one block, in the
separate form each level is one; anchors meet one block at a time, and the blocks' losses are averaged by weight.

With A anchors, M components and width D, the products it cannot do without are Z C^T (A x D x M) and, for its
gradients, G C (A x M x D) and G^T Z (M x A x D). The embedding of the N = A + M rows from C channels through H to D adds
(N x C x H) and (N x H x D) forward and two products of the same size each backward: nine products in all. (Components
that are remembered or detached need no G^T Z, and detached ones no backward products.)
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hicl_d2.contrast import host
from hicl_d2.contrast.pairing import Pairing

__all__ = ["Contrasted", "contrast_fused", "contrast_plainly"]

# From this temperature on, exp(s) summed over any number of components stays far inside float32, both ways.
_SAFE_TEMPERATURE = 0.05
# What is divided by is at least this.
_TINY = 1e-20
# Similarity of an anchor to its own window: as a positive so close that it costs nothing and moves nothing, with and
# without the row maximum subtracted.
_OWN, _OWN_SHIFTED = 80.0, 1e30
# Added to a similarity that the row maximum must not see.
_AWAY = -1e31
# Least difficulty of a positive, before it is raised to the power of the focus.
_LEAST_DIFFICULTY = 1e-3
# On a CPU: similarities in one chunk, which should stay in its cache, and anchors whose positives are handled at once.
_CHUNK, _STRIP = 500_000, 64
# On other devices: similarities at a time.
_DEVICE_CHUNK = 1 << 26


class Contrasted(NamedTuple):
    """Hold the loss and where it comes from.

    Attributes:
        loss: 0-d, with a graph to both embeddings.
        component_loss: (M,) detached; what each component contributes to the loss as a positive.
        component_weight: (M,) detached; the weight it does so with.
    """

    loss: Tensor
    component_loss: Tensor
    component_weight: Tensor


def contrast_fused(
    anchors: Tensor,
    components: Tensor,
    remembered: Tensor,
    pairing: Pairing,
    temperature: float,
    focus: float = 0.0,
) -> Contrasted:
    """Compute the loss in chunks of anchors, with both gradients made on the way and no A x M matrix kept.

    Args:
        anchors: (A, D) unit rows.
        components: (M, D) unit rows.
        remembered: (R, D) unit rows, components too, but without gradient; R may be 0.
        pairing: who is whose positive among anchors and all M + R components.
        temperature: T.
        focus: exponent of a positive's difficulty 1 - z.c in its weight; 0 weighs all alike. The weights are constants
            for the gradient.
    """
    return Contrasted(*_Contrast.apply(anchors, components, remembered, pairing, temperature, focus))


def contrast_plainly(
    anchors: Tensor,
    components: Tensor,
    remembered: Tensor,
    pairing: Pairing,
    temperature: float,
    focus: float = 0.0,
) -> Contrasted:
    """Compute the same loss with a mask matrix and log-softmax, for comparison. Arguments as in `contrast_fused`."""
    components = torch.cat([components, remembered.detach()])
    similarity = anchors @ components.t() / temperature
    present = pairing.component_class < pairing.num_classes
    alike = (pairing.anchor_class[:, None] == pairing.component_class) & present
    own = pairing.own[:, None] == torch.arange(len(components), device=components.device)
    difficulty = (1.0 - similarity.detach() * temperature).clamp(min=_LEAST_DIFFICULTY).pow(focus)
    loss = similarity.new_zeros(())
    by_component = torch.zeros(2, len(components), dtype=similarity.dtype, device=similarity.device)
    for b in range(pairing.blocks.shape[1]):
        inside = pairing.blocks[:, b] > 0
        positive, negative = alike & ~own & inside, ~alike & present & inside
        lowest = torch.finfo(similarity.dtype).min
        negatives = similarity.masked_fill(~negative, lowest).logsumexp(1, keepdim=True)
        log_probability = similarity - torch.logaddexp(similarity, negatives)
        weight = torch.where(positive, pairing.weight * difficulty, 0.0)
        total = weight.sum(1, keepdim=True)
        weight = pairing.share[:, b, None] * weight / torch.where(total > 0, total, 1.0)
        pair_loss = -weight * torch.where(positive, log_probability, 0.0)
        loss = loss + pair_loss.sum()
        by_component += torch.stack([pair_loss.detach().sum(0), weight.sum(0)])
    return Contrasted(loss, by_component[0], by_component[1])


class _Contrast(torch.autograd.Function):
    """Compute the loss and, where they are needed, its gradients, in one go over chunks of anchors."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        components: Tensor,
        remembered: Tensor,
        pairing: Pairing,
        temperature: float,
        focus: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        everything = torch.cat([components, remembered]) if len(remembered) else components
        work = _Work(anchors, everything, pairing, temperature, focus)
        with_gradient = len(components) if ctx.needs_input_grad[1] else 0
        ctx.save_for_backward(*work.run(ctx.needs_input_grad[0], with_gradient))
        component_loss, component_weight = work.totals
        ctx.mark_non_differentiable(component_loss, component_weight)
        return component_loss.sum(), component_loss, component_weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        for_anchors, for_components = ctx.saved_tensors
        return (
            for_anchors * grad if ctx.needs_input_grad[0] else None,
            for_components * grad if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
            None,
        )


class _Pairs(NamedTuple):
    """Hold the pairs of equal class between some anchors of a chunk and a range of components.

    Attributes:
        place: rows and columns of the chunk.
        similarity: (a, m), before they were taken out of the chunk.
        weight: (a, m), what a pair's loss counts in the whole, up to a factor per anchor; 0 off the positives.
    """

    place: tuple[slice, slice]
    similarity: Tensor
    weight: Tensor


class _Work:
    """Hold what all chunks share.

    Of a chunk's similarities only those between anchors and components of other classes are needed as a whole; pairs
    of equal class are taken out, a small part where there are many classes, since both sides are sorted by class.
    """

    def __init__(
        self, anchors: Tensor, components: Tensor, pairing: Pairing, temperature: float, focus: float
    ) -> None:
        self.pairing, self.temperature, self.focus = pairing, temperature, focus
        self.scaled = anchors / temperature
        # Rows without a component are zero, so that the products need no mask.
        self.present = (pairing.component_class < pairing.num_classes).to(anchors.dtype)
        self.components = components * self.present[:, None]
        self.one_block = pairing.blocks.shape[1] == 1
        # All positives of an anchor weigh alike: what an anchor counts can wait until after the products.
        self.alike = pairing.uniform and focus == 0.0
        self.weights = pairing.blocks * pairing.weight[:, None]
        self.totals = anchors.new_zeros(2, len(components))
        # As floats: a comparison whose result has the type of its operands is five times as fast as one to bool.
        self.component_class = pairing.component_class.to(anchors.dtype)
        self.anchor_class = pairing.anchor_class.to(anchors.dtype)
        self.anchor_class.masked_fill_(pairing.anchor_class >= pairing.num_classes, -1.0)
        self.shifted = temperature < _SAFE_TEMPERATURE
        self.own_similarity = _OWN_SHIFTED if self.shifted else _OWN
        per_anchor = max(1, len(components))
        if host.on_host(anchors):
            self.strip = _STRIP
            self.chunk = max(1, round(_CHUNK / per_anchor / _STRIP)) * _STRIP
        else:
            self.strip = self.chunk = max(16, _DEVICE_CHUNK // per_anchor)
        self.ranges = self._find_ranges()

    def run(self, for_anchors: bool, for_components: int) -> tuple[Tensor, Tensor]:
        """Add up the loss, and return its gradients (A, D) and (``for_components``, D).

        The first is empty unless asked for.
        """
        A = len(self.scaled)
        grad_anchors = torch.empty_like(self.scaled if for_anchors else self.scaled[:0])
        grad_components = torch.zeros_like(self.components[:for_components])
        buffer = self.components.new_empty(min(self.chunk, A), len(self.components))
        for start in range(0, A, self.chunk):
            rows = slice(start, min(start + self.chunk, A))
            chunk = torch.mm(self.scaled[rows], self.components.t(), out=buffer[: rows.stop - start])
            factor = self._differentiate(chunk, rows)
            # factor x chunk is the gradient at the similarities.
            if for_anchors:
                torch.mm(chunk, self.components, out=grad_anchors[rows]).mul_(factor / self.temperature)
            if for_components:
                grad_components.addmm_(chunk[:, :for_components].t(), self.scaled[rows] * factor)
        grad_components *= self.present[:for_components, None]
        if self.alike:
            self.totals[1] = self._weights_of_alike()
        return grad_anchors, grad_components

    def _weights_of_alike(self) -> Tensor:
        """Return the weight (M,) of each component as a positive where all positives of an anchor weigh alike."""
        K, M, unit = self.pairing.num_classes, len(self.components), self.pairing.unit[:, 0]
        of_class = unit.new_zeros(K + 1).index_add_(0, self.pairing.anchor_class, unit)
        by_own = unit.new_zeros(M + 1).index_add_(0, self.pairing.own, unit)
        return (of_class[self.pairing.component_class] - by_own[:M]) * self.present

    def _find_ranges(self) -> list[list[tuple[int, int]]]:
        """Find, for each strip of anchors, the ranges of columns that hold all its components of equal class.

        On a CPU, where reading a value waits for nothing, they are read from the classes, in which both anchors and
        the segments of components are sorted. On other devices it is always all columns.
        """
        starts = range(0, len(self.scaled), self.strip)
        if not host.on_host(self.scaled):
            return [[(0, len(self.components))] for _ in starts]
        classes = self.pairing.anchor_class
        first = classes[:: self.strip].contiguous()
        last = torch.cat([classes[self.strip - 1 :: self.strip], classes[-1:]])[: len(first)]
        last = last.clamp(max=self.pairing.num_classes - 1)
        bounds, offset = [], 0
        for segment in self.pairing.segments:
            bounds.append(torch.searchsorted(segment, first) + offset)
            bounds.append(torch.searchsorted(segment, last, right=True) + offset)
            offset += len(segment)
        pairs = torch.stack(bounds, dim=1).view(len(first), len(self.pairing.segments), 2)
        return [[(low, high) for low, high in strip if low < high] for strip in pairs.tolist()]

    def _differentiate(self, chunk: Tensor, rows: slice) -> Tensor:
        """Add a chunk's loss to the totals, and turn its similarities (a, M) into their gradient by a factor per row.

        Returns the factor, (a, 1).
        """
        counts = self.pairing.unit[rows] if self.alike else torch.ones_like(chunk[:, :1])
        pairs = self._take_pairs(chunk, rows)
        highest = self._shift(chunk, pairs) if self.shifted else None
        likeness = chunk.exp_()
        for place, _, alike in pairs:
            likeness[place].addcmul_(likeness[place], alike, value=-1.0)
        pairs = self._weigh(pairs, rows)
        negatives = likeness @ self.pairing.blocks
        log_negatives = negatives.log() if highest is None else negatives.log() + highest
        pull, slopes = torch.zeros_like(negatives), []
        for (local, columns), similarity, weight in pairs:
            gap = similarity.sub_(self._of_block(log_negatives[local], columns))
            if self.shifted:
                log_probability, slope = F.logsigmoid(gap), (-gap).sigmoid_()
            else:
                # The same, without what only gaps beyond -80 need.
                probability = gap.sigmoid_()
                log_probability, slope = probability.log(), probability.neg_().add_(1.0)
            slope *= weight
            self.totals[0, columns].addmv_(log_probability.mul_(weight).t(), counts[local, 0], alpha=-1.0)
            if not self.alike:
                self.totals[1, columns].addmv_(weight.t(), counts[local, 0])
            pull[local] += (
                slope.sum(1, keepdim=True) if self.one_block else slope @ self.pairing.blocks[columns]
            )
            slopes.append(slope)
        per_negative = pull / negatives.clamp(min=_TINY)
        if self.one_block:
            # So can the factor that all negatives of an anchor share.
            ratio = negatives / pull.clamp(min=_TINY)
            for pair, slope in zip(pairs, slopes, strict=True):
                likeness[pair.place].addcmul_(slope, ratio[pair.place[0]], value=-1.0)
            return per_negative.mul_(counts)
        likeness *= per_negative @ self.pairing.blocks.t()
        for pair, slope in zip(pairs, slopes, strict=True):
            likeness[pair.place] -= slope
        return counts

    def _take_pairs(self, chunk: Tensor, rows: slice) -> list[_Pairs]:
        """Copy the similarities of equal class out of a chunk; all weigh 1."""
        own = self.pairing.own[rows, None]
        has_own, own = own < chunk.shape[1], own.clamp(max=chunk.shape[1] - 1)
        chunk.scatter_(1, own, torch.where(has_own, self.own_similarity, chunk.gather(1, own)))
        pairs = []
        for start in range(rows.start, rows.stop, self.strip):
            strip = slice(start, min(start + self.strip, rows.stop))
            local = slice(start - rows.start, strip.stop - rows.start)
            for low, high in self.ranges[start // self.strip]:
                similarity = chunk[local, low:high].clone()
                alike = torch.empty_like(similarity)
                torch.eq(self.anchor_class[strip, None], self.component_class[low:high], out=alike)
                pairs.append(_Pairs((local, slice(low, high)), similarity, alike))
        return pairs

    def _weigh(self, pairs: list[_Pairs], rows: slice) -> list[_Pairs]:
        """Give pairs that are not alike the weight of their level, of their difficulty and of their anchor."""
        if self.alike:
            return pairs
        unit = self.pairing.unit[rows]
        if self.focus > 0.0:
            total = torch.zeros_like(unit)
            for (local, columns), similarity, weight in pairs:
                difficulty = (1.0 - similarity * self.temperature).clamp_(min=_LEAST_DIFFICULTY)
                weight *= difficulty.pow_(self.focus).mul_(similarity < self.own_similarity)
                total[local] += weight @ self.weights[columns]
            unit = torch.where(total > 0, self.pairing.share[rows] / torch.where(total > 0, total, 1.0), 0.0)
        for (local, columns), similarity, weight in pairs:
            weight *= (unit[local] @ self.weights[columns].t()).mul_(similarity < self.own_similarity)
        return pairs

    def _shift(self, chunk: Tensor, pairs: list[_Pairs]) -> Tensor:
        """Subtract from each row the greatest similarity to a negative per block, and return that, (a, blocks)."""
        for place, _, alike in pairs:
            chunk[place].add_(alike, alpha=_AWAY)
        chunk += (1.0 - self.present) * _AWAY
        tops = [
            (chunk + (1.0 - inside) * _AWAY).amax(1, keepdim=True) for inside in self.pairing.blocks.unbind(1)
        ]
        highest = torch.cat(tops, dim=1)
        highest = torch.where(highest > _AWAY / 10, highest, 0.0)
        chunk -= self._of_block(highest, slice(None))
        return highest

    def _of_block(self, values: Tensor, columns: slice) -> Tensor:
        """Lay values (a, blocks) over columns: (a, m), or (a, 1) where there is one block."""
        return values if self.one_block else values.index_select(1, self.pairing.block[columns])
