"""The peers' memory against lists that keep their last entries, in one process and in two."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from hicl_d2.contrast import build_contrast
from hicl_d2.contrast.bank import ComponentBank
from hicl_d2.contrast.peers.memory import make_memory, recall, remember
from tests.support.process_group import in_process_group

CLASSES, DIM, SIZE = 3, 2, 4


def batches(seed: int, count: int = 6, rows: int = 7) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(rows, DIM, generator=generator),
            torch.randint(-1, CLASSES, (rows,), generator=generator),
        )
        for _ in range(count)
    ]


def held(memory: ComponentBank, label: int) -> list[list[float]]:
    rows, classes = recall(memory)
    return sorted(rows[classes == label].tolist())


@pytest.mark.parametrize("rows", [1, 3, 7, 30])
def test_keeps_the_last_entries_of_every_class(rows: int) -> None:
    memory = make_memory(CLASSES, 1, DIM, SIZE)
    kept: dict[int, list[list[float]]] = {label: [] for label in range(CLASSES)}
    for batch, classes in batches(rows, rows=rows):
        remember(memory, [(batch, classes)])
        for label in range(CLASSES):
            kept[label] = (kept[label] + batch[classes == label][:SIZE].tolist())[-SIZE:]
            assert held(memory, label) == sorted(kept[label])


def test_is_empty_at_first_and_pointers_move_by_what_was_written() -> None:
    memory = make_memory(CLASSES, 1, DIM, SIZE)
    assert (recall(memory)[1] == -1).all()
    remember(memory, [(torch.ones(5, DIM), torch.tensor([0, 0, 2, -1, 0]))])
    assert memory.pointer.flatten().tolist() == [3, 0, 1]
    remember(memory, [(torch.ones(2, DIM), torch.tensor([0, 0]))])
    assert memory.pointer.flatten().tolist() == [1, 0, 1]
    assert memory.written.flatten().tolist() == [4, 0, 1]


def test_is_saved_with_the_module_and_detached() -> None:
    first, second = make_memory(CLASSES, 1, DIM, SIZE), make_memory(CLASSES, 1, DIM, SIZE)
    for rows, classes in batches(1):
        remember(first, [(rows.requires_grad_(), classes)])
    assert not recall(first)[0].requires_grad
    second.load_state_dict(first.state_dict())
    for memory in (first, second):
        remember(memory, [batches(2, count=1)[0]])
    assert all(torch.equal(one, other) for one, other in zip(recall(first), recall(second), strict=True))


def test_size_of_its_own_is_bounded_over_all_classes() -> None:
    assert make_memory(19, 1, DIM).size == 215
    assert make_memory(171, 1, DIM).size == 23
    assert make_memory(5000, 1, DIM).size == 8
    with pytest.raises(ValueError, match="bank_size must be"):
        make_memory(CLASSES, 1, DIM, -1)


@in_process_group
def _write_as_one_of_two(rank: int, folder: str) -> None:
    memory = make_memory(CLASSES, 1, DIM, SIZE)
    for rows, classes in batches(10 + rank):
        remember(memory, [(rows, classes)])
    torch.manual_seed(0)
    contrast = build_contrast("pixel_memory", 4, CLASSES, dim=DIM, bank_size=SIZE, anchors=8)
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(1, 4, 4, 4, generator=generator)
    contrast(features, torch.randint(CLASSES, (1, 4, 4), generator=generator), seed=rank)
    torch.save({"memory": memory.state_dict(), "contrast": contrast.state_dict()}, f"{folder}/{rank}.pt")


def test_two_processes_hold_the_same_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    mp.spawn(_write_as_one_of_two, (str(tmp_path),), nprocs=2)
    saved: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = make_memory(CLASSES, 1, DIM, SIZE)
    for (rows, classes), (more_rows, more_classes) in zip(batches(10), batches(11), strict=True):
        remember(alone, [(torch.cat([rows, more_rows]), torch.cat([classes, more_classes]))])
    for key, value in alone.state_dict().items():
        assert torch.equal(saved[0]["memory"][key], value)
    for part in saved[0]:
        for key, value in saved[0][part].items():
            assert torch.equal(saved[1][part][key], value), key
