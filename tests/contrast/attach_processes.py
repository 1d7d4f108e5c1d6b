"""Steps of a model with an attached contrast in two processes; run by `test_attach`."""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.contrast.attach_models import attached, by_hand, make_batch, make_model
from tests.support.process_group import in_process_group


@in_process_group
def run(rank: int, folder: str) -> None:
    """Take three steps, one of them without labels here, and save what the process ends with."""
    model, branch = attached(bank_size=4, gather=True)
    reference, contrast = copy.deepcopy(model), copy.deepcopy(branch)
    reference.hicl.detach()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, expected = [], []
    for step in range(3):  # a step fails if a parameter had no gradient in the one before
        images, labels = make_batch(seed=10 * step + rank)
        if step == 1 and rank == 1:
            labels[:] = 255
        reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("hicl.")})
        contrast.load_state_dict(branch.state_dict())
        features = reference.middle(reference.backbone(images))
        seed = (3 * 1_000_003 + step) * 4096 + rank
        by_hand = contrast(features, labels, reference.classifier(features), seed=seed).loss
        expected.append(0.1 * by_hand.item())
        optimizer.zero_grad()
        logits = F.interpolate(wrapped(images), scale_factor=4.0, mode="bilinear")
        loss = branch.loss(labels)
        losses.append(loss.item())
        (F.cross_entropy(logits, labels, ignore_index=255).nan_to_num() + loss).backward()
        optimizer.step()
    state = {key: value for key, value in model.state_dict().items() if "running" not in key}
    torch.save(
        {"losses": losses, "expected": expected, "state": state, "steps": branch.steps},
        Path(folder) / f"{rank}.pt",
    )


@in_process_group
def run_balanced(rank: int, folder: str) -> None:
    """Measure gradients in one step and save their norms, by passes of their own, and the factor of the next step."""
    model, branch = attached(weight=1.0, weight_of="gradient")
    twin, contrast = make_model(), copy.deepcopy(branch)
    images, labels = make_batch(seed=rank)
    output = model(images)
    (branch.loss(labels) + output.square().mean()).backward()
    features, logits = by_hand(twin, images)
    own = contrast(features, labels, logits, seed=3 * 1_000_003 * 4096 + rank).loss
    norms = [
        torch.autograd.grad(part, features, retain_graph=True)[0].norm().item()
        for part in (own, logits.square().mean())
    ]
    factor = branch.attachment.balance.factor(1).item()
    torch.save({"norms": norms, "factor": factor}, Path(folder) / f"{rank}.pt")
