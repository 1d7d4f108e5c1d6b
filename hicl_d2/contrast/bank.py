"""Components remembered from earlier steps."""

from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.contrast.components import Components
from hicl_d2.contrast.processes import gather_rows

__all__ = ["ComponentBank"]


class ComponentBank(nn.Module):
    """Remember embedded components: one ring per class and level, the same on every process, saved with the state.

    A ring takes the new components of all processes in rank order and overwrites its oldest; its pointer advances by what
    was written. If there are more new components than the ring is long, the first ones fill it.
    """

    rows: Tensor
    written: Tensor
    pointer: Tensor
    updates: Tensor

    def __init__(self, num_classes: int, num_levels: int, size: int, dim: int, start: int = 0) -> None:
        """Make an empty bank.

        Args:
            num_classes: K.
            num_levels: L.
            size: components per ring.
            dim: width of the embedding.
            start: updates before the bank is recalled; it is filled from the first update on.
        """
        super().__init__()
        self.num_classes, self.num_levels, self.size, self.start = num_classes, num_levels, size, start
        self.register_buffer("rows", torch.zeros(num_classes, num_levels, size, dim))
        self.register_buffer("written", torch.zeros(num_classes, num_levels, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros(num_classes, num_levels, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, *args: Any, **kwargs: Any) -> "ComponentBank":
        """Keep the rows one after another, whatever a model is moved or laid out as: channels_last is for feature maps."""
        super()._apply(*args, **kwargs)
        self.rows = self.rows.contiguous()
        return self

    def recall(self) -> Components:
        """Return all K x L x size places as components without gradient; an empty place has class -1."""
        K, L, size = self.num_classes, self.num_levels, self.size
        device = self.rows.device
        filled = torch.arange(size, device=device) < self.written[..., None]
        filled &= self.updates >= self.start
        classes = torch.arange(K, device=device)[:, None, None].expand(K, L, size)
        levels = torch.arange(L, device=device)[None, :, None].expand(K, L, size)
        return Components(
            self.rows.flatten(0, 2),
            torch.where(filled, classes, -1).flatten(),
            torch.where(filled, levels, 0).flatten(),
            runs=(classes.reshape(-1),),
        )

    @torch.no_grad()
    def remember(self, components: Components) -> None:
        """Write this step's components of all processes; their number must be the same on every process.

        A row that is not finite is left out: it would spoil every later step.
        """
        rows, classes, levels = (
            gather_rows(part) for part in (components.rows.detach(), components.classes, components.levels)
        )
        rings = self.num_classes * self.num_levels
        is_kept = (classes >= 0) & rows.isfinite().all(dim=1)
        ring = torch.where(is_kept, classes * self.num_levels + levels, rings)
        ordered, order = ring.sort(stable=True)
        first = torch.searchsorted(ordered, torch.arange(rings + 1, device=ring.device))
        turn = torch.arange(len(ring), device=ring.device) - first[ordered]
        wanted = (ordered < rings) & (turn < self.size)
        inside = ordered.clamp(max=rings - 1)
        place = inside * self.size + (self.pointer.view(-1)[inside] + turn) % self.size
        self._write(rows[order], place, wanted)
        new = first.diff().clamp(max=self.size).view_as(self.pointer)
        self.pointer.copy_((self.pointer + new) % self.size)
        self.written.copy_((self.written + new).clamp(max=self.size))
        self.updates += 1

    def _write(self, rows: Tensor, place: Tensor, wanted: Tensor) -> None:
        """Write the wanted ones of ``rows`` (N, dim) to their places (N,), without reading their number to the host.

        A row that is not wanted is replaced by one that is, together with its place, so that it changes nothing. If none is
        wanted, all write to the first place what it already holds.
        """
        if not len(rows):
            return
        flat = self.rows.view(-1, self.rows.shape[-1])
        # Indexing with a tensor of one element, unlike one of no axes, does not read it to the host.
        example = wanted.to(torch.uint8).argmax().view(1)
        place = torch.where(wanted, place, torch.where(wanted.any(), place[example], 0))
        rows = torch.where(wanted[:, None], rows, torch.where(wanted.any(), rows[example], flat[:1]))
        flat.index_copy_(0, place, rows.to(flat.dtype))
