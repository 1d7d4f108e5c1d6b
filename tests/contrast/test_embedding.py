"""The embedding head against its layers."""

import pytest
import torch

from hicl_d2.contrast import embedding
from hicl_d2.contrast.embedding import EmbeddingHead
from tests.contrast.reference import embed


def make_head(layers: int = 2) -> EmbeddingHead:
    torch.manual_seed(0)
    head = EmbeddingHead(5, hidden_dim=7, dim=4, layers=layers).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_its_layers_one_row_at_a_time(layers: int) -> None:
    head, rows = make_head(layers), torch.randn(9, 5, dtype=torch.float64)
    expected = torch.stack([embed(head, row) for row in rows])
    torch.testing.assert_close(head(rows), expected)
    torch.testing.assert_close(head.embed_plainly(rows), expected)
    torch.testing.assert_close(head(rows).norm(dim=1), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(("layers", "block"), [(2, 2), (1, 100), (2, 100), (3, 2)])
def test_gradcheck(layers: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_ROWS", block)
    head, rows = make_head(layers), torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in head.named_parameters()]

    def run(rows: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(
            head, dict(zip(names, parameters, strict=True)), rows
        )
        return found

    assert torch.autograd.gradcheck(run, (rows, *head.parameters()), fast_mode=True)


def test_no_rows_give_zero_gradients() -> None:
    head = make_head()
    head(torch.zeros(0, 5, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_a_row_embedded_to_zero_stays_finite() -> None:
    head = make_head()
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias.zero_()
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    out = head(rows)
    assert not out.any()
    out.sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_rows_without_gradient_leave_the_parameters_theirs() -> None:
    head, rows = make_head(), torch.randn(4, 5, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)
    got = torch.autograd.grad((head(rows) * weight).sum(), list(head.parameters()))
    wanted = torch.autograd.grad((head.embed_plainly(rows) * weight).sum(), list(head.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_head_for_other_channels_is_like_this_one() -> None:
    other = make_head(3).for_channels(9)
    assert [tuple(p.shape) for p in other.parameters() if p.dim() == 2] == [(7, 9), (7, 7), (4, 7)]


def test_no_layer_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 layer, not 0"):
        make_head(0)
