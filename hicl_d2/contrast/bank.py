"""Components remembered from earlier steps."""

import torch
from torch import Tensor, nn

from hicl_d2.contrast.collect import gather_rows
from hicl_d2.contrast.pairing import Columns

__all__ = ["ComponentBank"]


class ComponentBank(nn.Module):
    """Remember embedded components: one ring per class and level, the same on every process, saved with the state.

    A ring takes new components of all processes in rank order and overwrites the oldest; its pointer advances by what
    was written. Of more new components than a ring holds the first fill it.
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
            start: updates before the bank is used; it is filled from the first on.
        """
        super().__init__()
        self.num_classes, self.num_levels, self.size, self.start = num_classes, num_levels, size, start
        self.register_buffer("rows", torch.zeros(num_classes, num_levels, size, dim))
        self.register_buffer("written", torch.zeros(num_classes, num_levels, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros(num_classes, num_levels, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def recall(self) -> tuple[Tensor, Columns]:
        """Return all K x L x size places, (R, dim), and what is known about them; empty ones have no class."""
        K, L, size = self.num_classes, self.num_levels, self.size
        device = self.rows.device
        filled = torch.arange(size, device=device) < self.written[..., None]
        filled &= self.updates >= self.start
        classes = torch.arange(K, device=device)[:, None, None].expand(K, L, size)
        levels = torch.arange(L, device=device)[None, :, None].expand(K, L, size)
        columns = Columns(
            torch.where(filled, classes, K).flatten(),
            torch.where(filled, levels, 0).flatten(),
            classes.reshape(-1),
        )
        return self.rows.flatten(0, 2), columns

    @torch.no_grad()
    def remember(self, components: Tensor, columns: Columns) -> None:
        """Write this step's components (M, dim) of all processes; M must be the same on each."""
        components, classes, levels = (
            gather_rows(part) for part in (components.detach(), columns.classes, columns.levels)
        )
        rings = self.num_classes * self.num_levels
        ring = torch.where(classes < self.num_classes, classes * self.num_levels + levels, rings)
        ordered, order = ring.sort(stable=True)
        first = torch.searchsorted(ordered, torch.arange(rings + 1, device=ring.device))
        turn = torch.arange(len(ring), device=ring.device) - first[ordered]
        wanted = (ordered < rings) & (turn < self.size)
        inside = ordered.clamp(max=rings - 1)
        place = inside * self.size + (self.pointer.view(-1)[inside] + turn) % self.size
        self._write(components[order], place, wanted)
        new = first.diff().clamp(max=self.size).view_as(self.pointer)
        self.pointer.copy_((self.pointer + new) % self.size)
        self.written.copy_((self.written + new).clamp(max=self.size))
        self.updates += 1

    def _write(self, rows: Tensor, place: Tensor, wanted: Tensor) -> None:
        """Write the wanted rows, of a number that only the device knows.

        The others repeat a row that is wanted, in its place; if none is, all put back what the first place holds.
        """
        if not len(rows):
            return
        flat = self.rows.view(-1, self.rows.shape[-1])
        # Indexing with a one-element tensor, and not with a scalar one, does not read it back to the host.
        example = wanted.to(torch.uint8).argmax().view(1)
        place = torch.where(wanted, place, torch.where(wanted.any(), place[example], 0))
        rows = torch.where(wanted[:, None], rows, torch.where(wanted.any(), rows[example], flat[:1]))
        flat.index_copy_(0, place, rows.to(flat.dtype))
