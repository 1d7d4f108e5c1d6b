"""The pixel-to-component loss in chunks of anchors, with both gradients made in the forward pass and no A x N matrix kept.

With s_ij = z_i.c_j / T and S_i = sum over n in N_i of exp(s_in), a positive p of anchor i costs -w_ip x log sigmoid(g_ip),
where g_ip = s_ip - log S_i is its *gap*. Let a_ip = w_ip x sigmoid(-g_ip) be its *slope*. The gradient of the loss is -a_ip
at s_ip, and exp(s_in) / S_i x (sum over p of a_ip) at s_in: the *pull* of the anchor's positives, shared by its negatives.

Of a chunk's similarities only those to components of other classes are needed as a whole. Pairs of equal class are copied
out; they are few where there are many classes, since anchors and components are both sorted by class.

Cost: with A anchors, N components and width D, the loss needs the product Z C^T (A x D x N) and for its gradients G C
(A x N x D) and G^T Z (N x A x D). The embedding of the R = A + N rows from C channels through H to D adds (R x C x H) and
(R x H x D) forward and two products of each size backward: nine products in all. (Components of a bank or detached ones
need no G^T Z, and detached ones no backward products.)
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast.components import Components
from hicl_d2.contrast.fused import host
from hicl_d2.contrast.loss import LEAST_DIFFICULTY, Contrasted
from hicl_d2.contrast.once import TEXTBOOK, differentiable_once
from hicl_d2.contrast.pairing import Pairing

__all__ = ["contrast"]

# From this temperature on, exp(s) summed over any number of components stays far inside float32, both ways.
_SAFE_TEMPERATURE = 0.05
# Least divisor.
_TINY = 1e-20
# Sentinel for an anchor's similarity to its own window: its loss and gradient as a positive are zero. The second one is
# for when the row maximum is subtracted.
_OWN, _OWN_SHIFTED = 80.0, 1e30
# Added to a similarity that the row maximum must not see.
_AWAY = -1e31
# Compares as greater than every class.
_AFTER_ALL_CLASSES = 1 << 40
# On a CPU: similarities in one chunk, which should stay in its cache, and anchors whose positives are handled at once.
_CHUNK, _STRIP = 500_000, 64
# On other devices: similarities in one chunk.
_DEVICE_CHUNK = 1 << 26


def contrast(
    anchors: Tensor, components: Components, pairing: Pairing, temperature: float, focus: float = 0.0
) -> Contrasted:
    """Compute the loss. Arguments and result as in the plain twin, `hicl_d2.contrast.loss.contrast`."""
    return Contrasted(*_Contrast.apply(anchors, components.rows, components, pairing, temperature, focus))


class _Contrast(torch.autograd.Function):
    """Compute the loss and, where they are needed, its gradients, in one go over chunks of anchors."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        rows: Tensor,
        components: Components,
        pairing: Pairing,
        temperature: float,
        focus: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        chunks = _Chunks(anchors, components, pairing, temperature, focus)
        with_gradient = len(rows) if ctx.needs_input_grad[1] else 0
        ctx.save_for_backward(*chunks.run(ctx.needs_input_grad[0], with_gradient))
        component_loss, component_weight = chunks.totals
        ctx.mark_non_differentiable(component_loss, component_weight)
        return component_loss.sum(), component_loss, component_weight

    @staticmethod
    @differentiable_once(TEXTBOOK)
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        for_anchors, for_rows = ctx.saved_tensors
        return (
            for_anchors * grad if ctx.needs_input_grad[0] else None,
            for_rows * grad if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
            None,
        )


class _Pairs(NamedTuple):
    """Hold the pairs between some anchors of a chunk and a range of components that share classes with them.

    Attributes:
        place: rows and columns of the chunk.
        similarity: (a, n), a copy.
        same_class: (a, n), 1 for a pair of equal class, else 0.
    """

    place: tuple[slice, slice]
    similarity: Tensor
    same_class: Tensor


class _Chunks:
    """Go over the anchors in chunks, and hold what all chunks share.

    The buffer of a chunk (a, N) holds its similarities, then their exponentials, then the gradient. Each step overwrites
    the one before and returns the buffer under the name of what it now holds.
    """

    def __init__(
        self, anchors: Tensor, components: Components, pairing: Pairing, temperature: float, focus: float
    ) -> None:
        self.pairing, self.temperature, self.focus = pairing, temperature, focus
        self.classes, self.levels = components.classes, components.levels
        self.scaled = anchors / temperature
        # Rows of empty places are zero, so that the products need no mask.
        self.present = (components.classes >= 0).to(anchors.dtype)
        self.rows = components.all_rows * self.present[:, None]
        self.one_group = pairing.loss_group.shape[1] == 1
        # All positives of an anchor weigh alike: the anchor's factor can wait until after the products.
        self.uniform = pairing.uniform and focus == 0.0
        self.weights = pairing.loss_group * pairing.positive_weight[:, None]
        self.totals = anchors.new_zeros(2, len(self.rows))
        # As floats: a comparison whose result has the type of its operands is five times as fast as one to bool.
        self.component_class = components.classes.to(anchors.dtype)
        # An empty anchor must not be of the class of an empty component, -1.
        self.anchor_class = pairing.anchor_class.to(anchors.dtype)
        self.anchor_class.masked_fill_(pairing.anchor_class < 0, -2.0)
        self.shifted = temperature < _SAFE_TEMPERATURE
        self.own_similarity = _OWN_SHIFTED if self.shifted else _OWN
        per_anchor = max(1, len(self.rows))
        if host.on_host(anchors):
            self.strip = _STRIP
            self.chunk = max(1, round(_CHUNK / per_anchor / _STRIP)) * _STRIP
        else:
            self.strip = self.chunk = max(16, _DEVICE_CHUNK // per_anchor)
        self.ranges = self._find_ranges(components.sorted_runs)

    def run(self, for_anchors: bool, for_rows: int) -> tuple[Tensor, Tensor]:
        """Add up the loss, and return its gradients at the anchors (A, D) and at the first ``for_rows`` components.

        The first is empty unless asked for.
        """
        A = len(self.scaled)
        grad_anchors = torch.empty_like(self.scaled if for_anchors else self.scaled[:0])
        grad_rows = torch.zeros_like(self.rows[:for_rows])
        buffer = self.rows.new_empty(min(self.chunk, A), len(self.rows))
        for start in range(0, A, self.chunk):
            part = slice(start, min(start + self.chunk, A))
            similarity = torch.mm(self.scaled[part], self.rows.t(), out=buffer[: part.stop - start])
            gradient, factor = self._differentiate(similarity, part)
            if for_anchors:
                torch.mm(gradient, self.rows, out=grad_anchors[part]).mul_(factor / self.temperature)
            if for_rows:
                grad_rows.addmm_(gradient[:, :for_rows].t(), self.scaled[part] * factor)
        grad_rows *= self.present[:for_rows, None]
        if self.uniform:
            self.totals[1] = self._uniform_weights()
        return grad_anchors, grad_rows

    def _uniform_weights(self) -> Tensor:
        """Return the weight (N,) of each component as a positive where all positives of an anchor weigh alike."""
        weight, own = self.pairing.weight_per_positive[:, 0], self.pairing.own
        # Empty anchors add 0 to class 0, anchors without an own window add 0 to component 0.
        of_class = weight.new_zeros(self.pairing.num_classes)
        of_class.index_add_(0, self.pairing.anchor_class.clamp(min=0), weight)
        by_own = weight.new_zeros(len(self.rows)).index_add_(0, own.clamp(min=0), weight * (own >= 0))
        return (of_class[self.classes] - by_own) * self.present

    def _find_ranges(self, runs: tuple[Tensor, ...]) -> list[list[tuple[int, int]]]:
        """Find, for each strip of anchors, the ranges of columns that hold all components of the strip's classes.

        They are read from the classes, in which the anchors and each run of components are sorted. On devices other than a
        CPU, where reading a value would make the host wait, the range is always all columns.
        """
        starts = range(0, len(self.scaled), self.strip)
        if not host.on_host(self.scaled):
            return [[(0, len(self.rows))] for _ in starts]
        anchor_class = _empty_last(self.pairing.anchor_class)
        first = anchor_class[:: self.strip].contiguous()
        last = torch.cat([anchor_class[self.strip - 1 :: self.strip], anchor_class[-1:]])[: len(first)]
        last = last.clamp(max=_AFTER_ALL_CLASSES - 1)
        bounds, offset = [], 0
        for run in map(_empty_last, runs):
            bounds.append(torch.searchsorted(run, first) + offset)
            bounds.append(torch.searchsorted(run, last, right=True) + offset)
            offset += len(run)
        ranges = torch.stack(bounds, dim=1).view(len(first), len(runs), 2)
        return [[(low, high) for low, high in strip if low < high] for strip in ranges.tolist()]

    def _differentiate(self, similarity: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Add the loss of some anchors to the totals, and return its gradient at their similarities (a, N).

        The gradient comes as a matrix (a, N), in the buffer of ``similarity``, and a factor per row, (a, 1).
        """
        factor = (
            self.pairing.weight_per_positive[part] if self.uniform else torch.ones_like(similarity[:, :1])
        )
        self._mark_own(similarity, part)
        pairs = self._copy_pairs(similarity, part)
        highest = self._subtract_highest(similarity, pairs) if self.shifted else None
        exponential = torch.exp(similarity, out=similarity)
        for place, _, same_class in pairs:
            exponential[place].addcmul_(exponential[place], same_class, value=-1.0)
        negatives = exponential @ self.pairing.loss_group
        log_negatives = negatives.log() if highest is None else negatives.log() + highest
        pull, slopes = torch.zeros_like(negatives), []
        for pair, weight in zip(pairs, self._weigh(pairs, part), strict=True):
            local, columns = pair.place
            gap = pair.similarity.sub_(self._spread(log_negatives[local], columns))
            slope = self._add_positives(gap, weight, columns, factor[local, 0])
            pull[local] += (
                slope.sum(1, keepdim=True) if self.one_group else slope @ self.pairing.loss_group[columns]
            )
            slopes.append((pair.place, slope))
        return self._gradient(exponential, negatives, pull, slopes, factor)

    def _mark_own(self, similarity: Tensor, part: slice) -> None:
        """Put the sentinel where an anchor of a chunk meets its own window."""
        own = self.pairing.own[part, None]
        has_own, own = own >= 0, own.clamp(min=0)
        similarity.scatter_(1, own, torch.where(has_own, self.own_similarity, similarity.gather(1, own)))

    def _copy_pairs(self, similarity: Tensor, part: slice) -> list[_Pairs]:
        """Copy the ranges that hold the pairs of equal class out of a chunk."""
        pairs = []
        for start in range(part.start, part.stop, self.strip):
            strip = slice(start, min(start + self.strip, part.stop))
            local = slice(start - part.start, strip.stop - part.start)
            for low, high in self.ranges[start // self.strip]:
                copied = similarity[local, low:high].clone()
                same_class = torch.empty_like(copied)
                torch.eq(self.anchor_class[strip, None], self.component_class[low:high], out=same_class)
                pairs.append(_Pairs((local, slice(low, high)), copied, same_class))
        return pairs

    def _subtract_highest(self, similarity: Tensor, pairs: list[_Pairs]) -> Tensor:
        """Subtract from each row its greatest similarity to a negative of the group; return that, (a, G)."""
        for place, _, same_class in pairs:
            similarity[place].add_(same_class, alpha=_AWAY)
        similarity += (1.0 - self.present) * _AWAY
        tops = [
            (similarity + (1.0 - in_group) * _AWAY).amax(1, keepdim=True)
            for in_group in self.pairing.loss_group.unbind(1)
        ]
        highest = torch.cat(tops, dim=1)
        highest = torch.where(highest > _AWAY / 10, highest, 0.0)
        similarity -= self._spread(highest, slice(None))
        return highest

    def _weigh(self, pairs: list[_Pairs], part: slice) -> list[Tensor]:
        """Return the weight (a, n) of each pair as a positive, up to the row's factor; 0 for pairs that are no positives.

        The weights take the memory of ``same_class``.
        """
        weights = [pair.same_class for pair in pairs]
        if self.uniform:
            return weights
        per_positive = self.pairing.weight_per_positive[part]
        if self.focus > 0.0:
            total = torch.zeros_like(per_positive)
            for ((local, columns), similarity, _), weight in zip(pairs, weights, strict=True):
                difficulty = (1.0 - similarity * self.temperature).clamp_(min=LEAST_DIFFICULTY)
                weight *= difficulty.pow_(self.focus).mul_(similarity < self.own_similarity)
                total[local] += weight @ self.weights[columns]
            per_positive = self.pairing.anchor_weight[part] / torch.where(total > 0, total, 1.0)
            per_positive = torch.where(total > 0, per_positive, 0.0)
        for ((local, columns), similarity, _), weight in zip(pairs, weights, strict=True):
            weight *= (per_positive[local] @ self.weights[columns].t()).mul_(similarity < self.own_similarity)
        return weights

    def _add_positives(self, gap: Tensor, weight: Tensor, columns: slice, factor: Tensor) -> Tensor:
        """Add the loss of positives to the totals of their components, and return their slopes (a, n).

        The slopes take the memory of ``gap``, unless the row maximum is subtracted.
        """
        if self.shifted:
            log_probability, slope = F.logsigmoid(gap), (-gap).sigmoid_()
        else:
            # The same, but inexact for gaps below -80, which occur only with the row maximum subtracted.
            probability = gap.sigmoid_()
            log_probability = probability.log()
            slope = probability.neg_().add_(1.0)
        slope *= weight
        self.totals[0, columns].addmv_(log_probability.mul_(weight).t(), factor, alpha=-1.0)
        if not self.uniform:
            self.totals[1, columns].addmv_(weight.t(), factor)
        return slope

    def _gradient(
        self,
        exponential: Tensor,
        negatives: Tensor,
        pull: Tensor,
        slopes: list[tuple[tuple[slice, slice], Tensor]],
        factor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Turn the exponentials (a, N) of negatives into the gradient by a factor per row (a, 1); return both.

        Args:
            exponential: 0 where there is no negative.
            negatives: (a, G), sums of the exponentials over each group.
            pull: (a, G), sums of the slopes.
            slopes: of the positives, by their place in the chunk.
            factor: (a, 1), what the slopes still have to be multiplied by.
        """
        per_negative = pull / negatives.clamp(min=_TINY)
        if self.one_group:
            # What all negatives of an anchor share goes into the factor too, so the matrix is not multiplied by it.
            ratio = negatives / pull.clamp(min=_TINY)
            gradient = exponential
            for place, slope in slopes:
                gradient[place].addcmul_(slope, ratio[place[0]], value=-1.0)
            return gradient, per_negative.mul_(factor)
        gradient = exponential.mul_(per_negative @ self.pairing.loss_group.t())
        for place, slope in slopes:
            gradient[place] -= slope
        return gradient, factor

    def _spread(self, values: Tensor, columns: slice) -> Tensor:
        """Give each column the value of its loss group: (a, n) from (a, G), or (a, 1) where there is one group."""
        return values if self.one_group else values.index_select(1, self.levels[columns])


def _empty_last(classes: Tensor) -> Tensor:
    """Make classes that end in -1 for empty places ascend, (N,) int64."""
    return torch.where(classes < 0, _AFTER_ALL_CLASSES, classes)
