"""A training step of every case in two processes, the second without labels; run by `test_attach`."""

from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.modeling.attach_cases import CASES, case_batch, case_model
from tests.support.process_group import in_process_group


@in_process_group
def run(rank: int, folder: str) -> None:
    """Take two steps per case without find_unused_parameters, and save what each process ends with."""
    found = {}
    for name in CASES:
        model = DistributedDataParallel(case_model(name, seed=rank), broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        batch = case_batch()
        if rank == 1:
            for entry in batch:
                entry["sem_seg"] = torch.full_like(entry["sem_seg"], 255)
        for _ in range(2):  # the second step fails if a parameter had no gradient in the first
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        found[name] = {key: value.detach().sum() for key, value in model.module.named_parameters()}
    torch.save(found, Path(folder) / f"{rank}.pt")
