"""Steps of one branch in two processes, each with half of a batch; run by `test_distributed`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.contrast import HiCLBranch
from tests.contrast.batches import make_batch, make_branch
from tests.support.process_group import in_process_group

CASES: dict[str, dict[str, Any]] = {
    "joint": {"gather": True},
    "separate": {"gather": True, "level_loss": "separate", "level_weights": (1.0, 2.0, 0.5)},
    "focus": {"gather": True, "positive_focus": 1.0},
    "detached": {"gather": True, "detach_components": True},
    "cold": {"gather": True, "temperature": 0.02},
    "textbook": {"gather": True, "implementation": "textbook"},
    "class": {"gather": True, "pooling": "class"},
    "middle": {"gather": True, "cell_class": "middle"},
    "one_empty": {"gather": True},
    "bank": {"gather": True, "bank_size": 200},
    "small_bank": {"bank_size": 3, "anchors": 30, "components": 40},
    "alone": {},
}


def batches(case: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the batches of two steps, of both processes together."""
    steps = [make_batch(batch=4, seed=seed) for seed in (1, 2)]
    if case == "one_empty":
        for _, labels, _ in steps:
            labels[2:] = 255
    return steps


def step(branch: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient of the features; the parameters keep theirs."""
    branch.zero_grad()
    features, labels, logits = batch
    features = features.detach().requires_grad_()
    loss = branch(features, labels, logits, seed=seed).loss
    loss.backward()
    assert features.grad is not None
    return loss.detach(), features.grad


def results(
    branch: torch.nn.Module, plain: HiCLBranch, steps: list[tuple[Tensor, Tensor, Tensor]]
) -> list[Any]:
    found = []
    for seed, batch in enumerate(steps):
        loss, grad = step(branch, batch, seed)
        parameters = [p.grad.clone() for p in plain.parameters() if p.grad is not None]
        state = {name: value.clone() for name, value in plain.state_dict().items()}
        found.append({"loss": loss, "features": grad, "parameters": parameters, "state": state})
    return found


@in_process_group
def run(rank: int, folder: str) -> None:
    """Be process ``rank``: take its half of every batch, and save what came out."""
    found = {}
    for case, settings in CASES.items():
        branch = make_branch(**settings)
        half = slice(2 * rank, 2 * rank + 2)
        steps = [tuple(part.detach()[half] for part in batch) for batch in batches(case)]
        found[case] = results(DistributedDataParallel(branch), branch, steps)  # type: ignore[arg-type]
    torch.save(found, Path(folder) / f"{rank}.pt")
