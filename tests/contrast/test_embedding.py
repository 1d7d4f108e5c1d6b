"""The embedding head against its layers."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.utils import prune  # noqa: F401 - torch.nn.utils alone does not import it

from hicl_d2.contrast.embedding import EmbeddingHead
from hicl_d2.contrast.fused import embedding as fused
from hicl_d2.contrast.operations import OPERATIONS
from tests.contrast.reference import embed as embed_one


def make_head(layers: int = 2) -> EmbeddingHead:
    torch.manual_seed(0)
    head = EmbeddingHead(5, hidden_dim=7, dim=4, layers=layers).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


class Embedder(torch.nn.Module):
    """A head that embeds in one of the two forms, so that its parameters can be swapped."""

    def __init__(self, head: EmbeddingHead, form: str) -> None:
        super().__init__()
        self.head, self.form = head, form

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return OPERATIONS[self.form].embed(self.head, rows)


both = pytest.mark.parametrize("form", OPERATIONS)


@both
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_its_layers_one_row_at_a_time(form: str, layers: int) -> None:
    head, rows = make_head(layers), torch.randn(9, 5, dtype=torch.float64)
    found = OPERATIONS[form].embed(head, rows)
    torch.testing.assert_close(found, torch.stack([embed_one(head, row) for row in rows]))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"), [(torch.float64, 1e-10, 1e-9), (torch.float32, 1e-6, 1e-5)]
)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_both_forms_are_equal(layers: int, dtype: torch.dtype, value: float, gradient: float) -> None:
    head = make_head(layers).to(dtype)
    rows = torch.randn(600, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(600, 4, dtype=dtype) / 600
    one, other = (operations.embed(head, rows) for operations in OPERATIONS.values())
    torch.testing.assert_close(one, other, rtol=value, atol=value)
    grads = (torch.autograd.grad((each * weight).sum(), [rows, *head.parameters()]) for each in (one, other))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=gradient, atol=gradient)


@both
@pytest.mark.parametrize(("layers", "block"), [(2, 2), (1, 100), (2, 100), (3, 2)])
def test_gradcheck(form: str, layers: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_ROWS", block)
    embedder, rows = (
        Embedder(make_head(layers), form),
        torch.randn(5, 5, dtype=torch.float64, requires_grad=True),
    )
    names = [name for name, _ in embedder.named_parameters()]

    def run(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(
            embedder, dict(zip(names, parameters, strict=True)), rows
        )
        return found

    assert torch.autograd.gradcheck(run, (rows, *embedder.parameters()), fast_mode=True)


@both
def test_no_rows_give_zero_gradients(form: str) -> None:
    head = make_head()
    OPERATIONS[form].embed(head, torch.zeros(0, 5, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@both
def test_a_row_embedded_to_zero_stays_finite(form: str) -> None:
    head = make_head()
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias.zero_()
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    out = OPERATIONS[form].embed(head, rows)
    assert not out.any()
    out.sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_rows_without_gradient_leave_the_parameters_theirs() -> None:
    head, rows = make_head(), torch.randn(4, 5, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad((operations.embed(head, rows) * weight).sum(), list(head.parameters()))
        for operations in OPERATIONS.values()
    )
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_head_for_other_channels_is_like_this_one() -> None:
    other = make_head(3).for_channels(9)
    assert [tuple(p.shape) for p in other.parameters() if p.dim() == 2] == [(7, 9), (7, 7), (4, 7)]


def through_spectral_norm(layer: torch.nn.Module) -> None:
    torch.nn.utils.parametrizations.spectral_norm(layer)


def through_weight_norm(layer: torch.nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(layer)


def pruned(layer: torch.nn.Module) -> None:
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("change", [through_spectral_norm, through_weight_norm, pruned])
def test_weights_that_are_made_of_others_train(change: Callable[[torch.nn.Module], None]) -> None:
    heads = [make_head(3), make_head(3)]
    for head in heads:
        for layer in (*head.hidden, head.output):
            torch.manual_seed(1)
            change(layer)
        head.eval()  # the power iteration of a spectral norm stands still
    rows = torch.randn(9, 5, dtype=torch.float64)
    for _ in range(2):
        found = [OPERATIONS[form].embed(head, rows) for form, head in zip(OPERATIONS, heads, strict=True)]
        torch.testing.assert_close(*found)
        for head, embedded in zip(heads, found, strict=True):
            embedded[:, 0].sum().backward()
            with torch.no_grad():
                for parameter in head.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None


def test_no_layer_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 layer, not 0"):
        make_head(0)
