"""A training step of the branch makes the host wait for nothing."""

from typing import Any

import pytest
import torch

from hicl_d2.contrast.fused import host
from tests.contrast.batches import make_batch, make_branch
from tests.contrast.contrast_tester import ForbidWaiting
from tests.contrast.test_branch import FORMS

STEPS = {
    **FORMS,
    "bank": {"bank_size": 3},
    "bank_start": {"bank_size": 3, "bank_start": 5},
    "class": {"pooling": "class"},
    "middle_class": {"pooling": "class", "cell_class": "middle"},
}


@pytest.mark.parametrize("everywhere", [False, True], ids=["cpu", "as_on_a_gpu"])
@pytest.mark.parametrize("form", STEPS)
def test_a_step_waits_for_nothing(form: str, everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as on other devices than a CPU, where no range of equal classes is read back."""
    if everywhere:
        monkeypatch.setattr(host, "on_host", lambda tensor: False)
    branch = make_branch(torch.float32, **STEPS[form])
    for with_logits in (True, False):
        features, labels, logits = make_batch(dtype=torch.float32)
        with ForbidWaiting():
            output = branch(features, labels, logits if with_logits else None)
            output.loss.backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "last"])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_for_other_devices_gives_the_same(
    form: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for everywhere in (False, True):
        if everywhere:
            monkeypatch.setattr(host, "on_host", lambda tensor: False)
        branch = make_branch(**FORMS[form])
        features, labels, logits = make_batch()
        features = features.detach().contiguous(memory_format=layout).requires_grad_()
        output = branch(features, labels, logits)
        found.append((output.loss, *torch.autograd.grad(output.loss, [features, *branch.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.item(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.unique(),
        lambda t: t.masked_select(t > 0),
        lambda t: t.int().bincount(),
        lambda t: torch.randperm(3),
        lambda t: t.repeat_interleave(torch.tensor([2])),
        lambda t: bool(t > 0),
    ],
)
def test_what_waits_is_caught(wait: Any) -> None:
    with ForbidWaiting(), pytest.raises(AssertionError, match="wait"):
        wait(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", STEPS)
def test_a_step_on_a_gpu_waits_for_nothing(form: str) -> None:
    branch = make_branch(torch.float32, **STEPS[form]).cuda()
    features, labels, logits = (part.detach().cuda() for part in make_batch(dtype=torch.float32))
    features.requires_grad_()
    branch(features, labels, logits).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        branch(features, labels, logits, seed=1).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
