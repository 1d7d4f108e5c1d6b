"""The branch as a whole: equal to the loops, every keyword moves something, every edge is survived."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hicl_d2.contrast import Contrast, HiCLBranch
from hicl_d2.contrast import branch as branch_module
from tests.contrast.batches import (
    draw,
    gradients,
    make_batch,
    make_branch,
    read_windows,
    reference_loss,
    settings_of,
)
from tests.contrast.contrast_tester import ContrastTester
from tests.contrast.reference import (
    Entry,
    embed,
    find_anchor_cells,
    find_windows,
    loss_of,
    mean_feature,
)

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "one_level": {"windows": (1,)},
    "no_single_cells": {"windows": (2, 4)},
    "odd_windows": {"windows": (1, 3, 5)},
    "overlap": {"overlap": True},
    "odd_overlap": {"windows": (1, 2, 3, 6), "overlap": True},
    "window_beyond_the_map": {"windows": (1, 4, 64)},
    "no_purity": {"purity": (0.0,)},
    "purity_at_one_half": {"purity": (0.5,)},
    "purity_per_level": {"purity": (1.0, 0.6, 0.3)},
    "coverage": {"coverage": (1.0, 0.9, 0.0)},
    "confidence": {"confidence_low": (0.2, 0.0, 0.2), "confidence_high": (1.0, 0.3, 0.26)},
    "weights": {"level_weights": (1.0, 3.0, 0.5)},
    "level_off": {"level_weights": (1.0, 0.0, 2.0)},
    "separate": {"level_loss": "separate"},
    "separate_weights": {"level_loss": "separate", "level_weights": (1.0, 0.5, 2.0)},
    "detached": {"detach_components": True},
    "focus": {"positive_focus": 1.5},
    "focus_and_weights": {"positive_focus": 1.0, "level_weights": (1.0, 2.0, 0.5)},
    "focus_separate": {"positive_focus": 2.0, "level_loss": "separate"},
    "cold": {"temperature": 0.01},
    "cold_separate": {"temperature": 0.01, "level_loss": "separate", "level_weights": (1.0, 2.0, 3.0)},
    "cold_focus": {"temperature": 0.03, "positive_focus": 1.0},
    "hot": {"temperature": 10.0},
    "small_budgets": {"anchors": 17, "components": 23},
    "boundary": {"boundary_negatives": 0.7, "components": 60},
    "middle": {"cell_class": "middle"},
    "middle_without_single_cells": {"cell_class": "middle", "windows": (2, 4)},
    "middle_of_one_level": {"cell_class": "middle", "windows": (1,), "coverage": (1.0,)},
    "middle_and_confidence": {"cell_class": "middle", "confidence_low": (0.2,)},
}


@pytest.mark.parametrize("implementation", ["fused", "textbook"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_loops(form: str, implementation: str) -> None:
    features, labels, logits = make_batch()
    branch = make_branch(**FORMS[form], implementation=implementation)
    loss = branch(features, labels, logits).loss
    expected = reference_loss(branch, features, labels, logits)
    assert expected.item() > 0
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(
        gradients(loss, branch, features), gradients(expected, branch, features), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_textbook_in_float32(form: str, layout: torch.memory_format) -> None:
    features, labels, logits = make_batch(size=(17, 22), patch=5, stride=4, dtype=torch.float32)
    features = features.detach().contiguous(memory_format=layout).requires_grad_()
    results = []
    for implementation in ("fused", "textbook"):
        branch = make_branch(torch.float32, **FORMS[form], implementation=implementation)
        output = branch(features, labels, logits, seed=3)
        results.append((output, gradients(output.loss, branch, features)))
    (fused, fused_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(fused.loss, plain.loss, rtol=2e-6, atol=1e-6)
    scale = 0.2 / min(0.2, branch.temperature)
    for got, wanted in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * scale)
    assert fused.diagnostics.keys() == plain.diagnostics.keys()
    for name, figure in fused.diagnostics.items():
        torch.testing.assert_close(figure, plain.diagnostics[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", ["default", "separate", "weights", "cold", "overlap", "odd_windows"])
def test_gradcheck(form: str) -> None:
    features, labels, logits = make_batch(size=(4, 6), patch=2, channels=3)
    settings = {"windows": (1, 2), **FORMS[form]}
    if len(settings.get("level_weights", ())) == 3:
        settings["level_weights"] = settings["level_weights"][:2]
    branch = make_branch(**settings, channels=3, hidden_dim=4, dim=3)
    names = [name for name, _ in branch.named_parameters()]

    def loss(features: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        output = torch.func.functional_call(branch, named, (features, labels, logits))
        return output.loss

    assert torch.autograd.gradcheck(loss, (features, *branch.parameters()), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("implementation", ["fused", "textbook"])
@pytest.mark.parametrize("level_loss", ["joint", "separate"])
def test_the_gradient_of_detached_components_is_that_of_constants(
    level_loss: str, implementation: str
) -> None:
    """Against differences of the loop's loss, whose components stay as they were embedded at first."""
    features, labels, logits = make_batch(size=(4, 6), patch=2, channels=3)
    branch = make_branch(
        windows=(1, 2),
        level_loss=level_loss,
        implementation=implementation,
        detach_components=True,
        channels=3,
        hidden_dim=4,
        dim=3,
    )
    inputs = [features, *branch.parameters()]
    found = torch.autograd.grad(branch(features, labels, logits).loss, inputs)
    anchors, windows = read_windows(branch, draw(branch, features, labels, logits), features)
    with torch.no_grad():
        components = [
            Entry(embed(branch.embedding, mean_feature(features, window)), label, window.level, window)
            for window, label in windows.items()
        ]

        def moved(directions: list[Tensor], step: float) -> float:
            for tensor, direction in zip(inputs, directions, strict=True):
                tensor.add_(direction, alpha=step)
            embedded = [
                (cell, embed(branch.embedding, mean_feature(features, cell)), label)
                for cell, label in anchors.items()
            ]
            value = loss_of(
                embedded, components, [1.0, 1.0], branch.temperature, separate=level_loss == "separate"
            )
            for tensor, direction in zip(inputs, directions, strict=True):
                tensor.sub_(direction, alpha=step)
            return float(value)

        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs]
            slope = (moved(directions, 1e-6) - moved(directions, -1e-6)) / 2e-6
            expected = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
            assert abs(expected) > 1e-3
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_draws_what_the_loops_keep() -> None:
    for form in (
        "default",
        "purity_per_level",
        "coverage",
        "confidence",
        "overlap",
        "odd_overlap",
        "no_purity",
        "middle",
        "middle_without_single_cells",
        "middle_and_confidence",
    ):
        features, labels, logits = make_batch(seed=4)
        branch = make_branch(**FORMS[form])
        drawn = draw(branch, features, labels, logits)
        levels = settings_of(branch)
        kept, reasons = find_windows(labels, (5, 6), 2, 4, levels, logits)
        anchors, components = read_windows(branch, drawn, features)
        assert components == kept
        assert anchors == find_anchor_cells(labels, (5, 6), 2, 4, levels[0])
        for counts, reason in zip((part.counts() for part in drawn.pruned), reasons, strict=True):
            assert {name.removeprefix("pruned_"): int(count) for name, count in counts.items()} == reason


def test_bank_counts_as_components_of_earlier_steps() -> None:
    first, second = make_batch(seed=1), make_batch(seed=2)
    for extra in ({}, {"level_loss": "separate"}, {"temperature": 0.02}, {"implementation": "textbook"}):
        branch = make_branch(bank_size=3, **extra)
        branch(*first)
        bank = branch.bank
        assert bank is not None
        remembered = [
            Entry(bank.rows[k, level, i].clone(), k, level, None)
            for k in range(4)
            for level in range(3)
            for i in range(int(bank.written[k, level]))
        ]
        assert len(remembered) > 10
        features, labels, logits = second
        loss = branch(features, labels, logits).loss
        expected = reference_loss(branch, features, labels, logits, remembered=remembered)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        for got, wanted in zip(
            gradients(loss, branch, features), gradients(expected, branch, features), strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


class TestHiCLBranch(ContrastTester):
    """What every contrast must do."""

    name = "hicl"
    settings = {"windows": (1, 2), "components": 60, "purity": (0.6,)}

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        return reference_loss(contrast, features, labels, logits)


MOVES: dict[str, tuple[Any, Any]] = {
    "ignore_value": (255, 0),
    "windows": ((1, 2, 4), (1, 3)),
    "overlap": (False, True),
    "pooling": ("window", "class"),
    "cell_class": ("majority", "middle"),
    "purity": ((0.9,), (0.6,)),
    "coverage": ((0.5,), (0.95,)),
    "confidence_low": ((0.0,), (0.3,)),
    "confidence_high": ((1.0,), (0.3,)),
    "level_weights": ((1.0,), (1.0, 2.0, 3.0)),
    "level_loss": ("joint", "separate"),
    "anchors": (500, 20),
    "components": (1000, 30),
    "hard_share": (0.5, 1.0),
    "boundary_negatives": (0.0, 1.0),
    "positive_focus": (0.0, 2.0),
    "temperature": (0.2, 0.1),
    "dim": (6, 8),
    "hidden_dim": (7, 9),
    "embedding_layers": (2, 3),
    "bank_size": (0, 4),
    "bank_start": (0, 2),
}


@pytest.mark.parametrize("keyword", MOVES)
def test_every_keyword_moves_the_loss(keyword: str) -> None:
    one, other = MOVES[keyword]
    shared: dict[str, Any] = {}
    if keyword in ("hard_share", "boundary_negatives"):
        shared = {"anchors": 20, "components": 40}
    if keyword == "bank_start":
        shared = {"bank_size": 4}
    losses = []
    for value in (one, other):
        branch = make_branch(**{**shared, keyword: value})
        branch(*make_batch(seed=1))
        losses.append(branch(*make_batch(seed=2)).loss.item())
    assert losses[0] != losses[1]


def test_detached_components_change_the_gradient_alone() -> None:
    batch = make_batch()
    branches = [make_branch(detach_components=value) for value in (False, True)]
    losses = [branch(*batch).loss for branch in branches]
    assert losses[0] == losses[1]
    one, other = (gradients(loss, branch, batch[0])[0] for loss, branch in zip(losses, branches, strict=True))
    assert not torch.allclose(one, other)


def test_gather_without_other_processes_changes_nothing() -> None:
    batch = make_batch()
    assert make_branch(gather=True)(*batch).loss == make_branch()(*batch).loss


def test_in_channels_and_num_classes_are_those_of_the_input() -> None:
    branch = make_branch(channels=5, num_classes=4)
    assert branch.embedding.in_channels == 5
    with pytest.raises(ValueError, match=r"\(B, 5, h, w\)"):
        branch(*make_batch(channels=6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": ()}, "windows"),
        ({"windows": (2, 1)}, "ascending"),
        ({"windows": (0, 1)}, "windows"),
        (
            {"windows": (1, 2), "purity": (0.9, 0.8, 0.7)},
            r"purity needs one value, or as many as there are windows \(2\), not 3",
        ),
        ({"purity": (1.1,)}, "purity must lie in 0 to 1"),
        ({"coverage": (-0.1,)}, "coverage"),
        ({"confidence_low": (2.0,)}, "confidence_low"),
        ({"level_weights": (-1.0,)}, "level_weights"),
        ({"level_weights": (0.0,)}, "every level off"),
        ({"level_loss": "both"}, "joint or separate"),
        ({"implementation": "slow"}, "fused or textbook"),
        ({"cell_class": "center"}, "cell_class must be majority or middle, not 'center'"),
        ({"hard_share": 1.5}, "hard_share"),
        ({"boundary_negatives": -1.0}, "boundary_negatives"),
        ({"positive_focus": -1.0}, "positive_focus"),
        ({"temperature": 0.0}, "temperature"),
        ({"windows": 4}, r"windows must be whole numbers from 1, ascending, such as \(1, 2, 4, 8\), not 4"),
        ({"windows": (1.0, 2.0)}, "windows must be whole numbers"),
        ({"windows": "Auto"}, "windows must be whole numbers .* not 'Auto'"),
        ({"purity": 1.5}, "purity must lie in 0 to 1, not 1.5"),
        ({"purity": "0.9"}, "purity must be a number, or one for each window, not '0.9'"),
        ({"coverage": None}, "coverage must be a number, or one for each window, not None"),
        ({"anchors": 0}, "anchors must be a whole number from 1 on, not 0"),
        ({"anchors": 100.0}, "anchors must be a whole number from 1 on, not 100.0"),
        ({"components": 0}, "components must be a whole number from 1 on"),
        ({"bank_size": -1}, "bank_size must be a whole number from 0 on"),
        ({"bank_start": 0.5}, "bank_start must be a whole number from 0 on"),
        ({"dim": 0}, "dim must be a whole number from 1 on"),
        ({"hidden_dim": 0}, "hidden_dim must be a whole number from 1 on"),
        ({"embedding_layers": True}, "embedding_layers must be a whole number from 1 on, not True"),
        ({"num_classes": 3.0}, "num_classes must be a whole number from 1 on, not 3.0"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 on, not nan"),
        ({"temperature": float("inf")}, "temperature must be a number from 0 on, not inf"),
        ({"hard_share": "half"}, "hard_share must be a number from 0 to 1, not 'half'"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_branch(**settings)


def test_one_number_holds_for_every_window() -> None:
    one = make_branch(windows=(1, 2), purity=0.8, coverage=0, level_weights=2, confidence_high=1)
    many = make_branch(
        windows=(1, 2), purity=(0.8, 0.8), coverage=(0.0,), level_weights=(2, 2), confidence_high=(1, 1)
    )
    assert one.levels == many.levels
    arrays = make_branch(
        windows=np.array([1, 2]), purity=np.array([0.8, 0.8]), coverage=0, level_weights=[2, 2]
    )
    assert arrays.levels == many.levels


@pytest.mark.parametrize("assign", [False, True])
def test_a_branch_made_without_memory_is_whole_once_its_state_is_loaded(assign: bool) -> None:
    made = make_branch(level_weights=(1.0, 0.5, 0.25))
    with torch.device("meta"):
        empty = make_branch(level_weights=(1.0, 0.5, 0.25))
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(made.state_dict(), assign=assign)
    assert empty.level_weights.tolist() == [1.0, 0.5, 0.25]
    features, labels, logits = make_batch()
    assert torch.equal(*(each(features, labels, logits, seed=0).loss for each in (made, empty)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [[1]]}, "labels must be a tensor, not list"),
        ({"features": None}, "features must be a tensor, not NoneType"),
        (
            {"features": torch.zeros(0, 5, 5, 6), "labels": torch.zeros(0, 10, 12).long()},
            "hold no image or no cell",
        ),
        ({"features": torch.zeros(2, 5, 0, 6)}, "hold no image or no cell"),
    ],
    ids=str,
)
def test_input_that_holds_nothing_is_named(change: dict[str, Any], message: str) -> None:
    features, labels, _ = make_batch()
    with pytest.raises(ValueError, match=message):
        make_branch()(**{"features": features, "labels": labels, **change})


class Wrong(Contrast):
    """A contrast of somebody's own that returns what it is told."""

    found: Any = None

    def contrast(self, *args: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(()), r"a tensor of no axes, and the figures of the step, not \(\)"),
        ((torch.zeros(3), {}), "not tuple"),
        (None, "Wrong.contrast must return a loss.*not NoneType"),
    ],
    ids=str,
)
def test_a_contrast_of_ones_own_must_return_loss_and_figures(found: Any, message: str) -> None:
    contrast = Wrong(5, 4).double()
    contrast.found = found
    features, labels, _ = make_batch()
    with pytest.raises(TypeError, match=message):
        contrast(features, labels)
    with pytest.raises(NotImplementedError, match="Contrast defines no method contrast"):
        Contrast(5, 4).double()(features, labels)


def test_diagnostics_are_named_per_level() -> None:
    diagnostics = make_branch()(*make_batch()).diagnostics
    per_level = (
        "candidates",
        "kept",
        "pruned_purity",
        "pruned_coverage",
        "pruned_confidence",
        "positive_similarity",
        "negative_similarity",
        "loss",
    )
    expected = {"hicl/loss", "hicl/anchors", "hicl/hard_share"}
    expected |= {f"hicl/w{window}/{name}" for window in (1, 2, 4) for name in per_level}
    assert diagnostics.keys() == expected


def test_level_losses_and_similarities_are_means_over_pairs() -> None:
    features, labels, logits = make_batch()
    branch = make_branch(level_loss="separate")
    diagnostics = branch(features, labels, logits).diagnostics
    for window in (1, 2, 4):
        alone = make_branch(windows=(window,))
        alone.load_state_dict(branch.state_dict())
        if window == 1:
            assert diagnostics["hicl/w1/loss"].item() == pytest.approx(
                alone(features, labels, logits).loss.item()
            )
    anchors, components = read_windows(branch, draw(branch, features, labels, logits), features)
    rows = {
        w: branch.embedding(
            features[w.image, :, w.row : w.row + w.side, w.column : w.column + w.side].mean((1, 2))[None]
        )[0]
        for w in {**anchors, **components}
    }
    for level in range(3):
        for sign in ("positive", "negative"):
            similarities = [
                float(rows[a].detach() @ rows[c].detach())
                for a, of_anchor in anchors.items()
                for c, of_component in components.items()
                if c.level == level and (of_anchor == of_component) == (sign == "positive") and a != c
            ]
            figure = diagnostics[f"hicl/w{branch.levels[level].window}/{sign}_similarity"]
            assert figure.item() == pytest.approx(sum(similarities) / len(similarities))


def test_half_of_the_anchors_are_hard() -> None:
    features, labels, logits = make_batch(size=(16, 16), noise=0.0)
    for share in (0.0, 0.25, 1.0):
        branch = make_branch(anchors=40, hard_share=share)
        assert branch(features, labels, logits).diagnostics["hicl/hard_share"].item() == pytest.approx(
            share, abs=0.06
        )
    assert branch(features, labels).diagnostics["hicl/hard_share"].item() == 0


def test_analytic_value() -> None:
    """Two classes with opposite embeddings: every pair costs log(1 + n exp(-2 / T))."""
    branch = make_branch(windows=(1,), temperature=1.0, dim=2, hidden_dim=2, channels=1, num_classes=2)
    with torch.no_grad():
        branch.embedding.hidden[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        branch.embedding.output.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        for part in (branch.embedding.hidden[0], branch.embedding.output):
            part.bias.zero_()
    labels = torch.tensor([[[0, 0, 0], [1, 1, 1]]])
    features = (1.0 - 2.0 * labels[:, None]).double()
    expected = math.log(1 + 3 * math.exp(-2))
    assert branch(features, labels).loss.item() == pytest.approx(expected)


def test_equal_embeddings_cost_the_log_of_the_number_of_rivals() -> None:
    branch = make_branch(windows=(1,))
    labels = torch.arange(4).repeat_interleave(4).view(1, 4, 4)
    features = torch.ones(1, 5, 4, 4, dtype=torch.float64)
    assert branch(features, labels).loss.item() == pytest.approx(math.log(13))


def test_nothing_to_contrast_is_a_zero_with_a_graph() -> None:
    features, labels, logits = make_batch(dtype=torch.float32)
    branch = make_branch(torch.float32)
    loss = branch(features, torch.full_like(labels, 255), logits).loss
    assert loss.item() == 0
    loss.backward()
    for leaf in (features, *branch.parameters()):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_one_class_costs_nothing() -> None:
    features, labels, logits = make_batch()
    branch = make_branch()
    loss = branch(features, torch.zeros_like(labels), logits).loss
    assert loss.item() == 0
    assert all(not g.any() for g in gradients(loss, branch, features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_input_equals_the_same_values_in_float32(dtype: torch.dtype, layout: Any) -> None:
    features, labels, logits = make_batch(dtype=torch.float32, size=(12, 16))
    features = features.detach().contiguous(memory_format=layout).to(dtype).requires_grad_()
    branch = make_branch(torch.float32)
    loss = branch(features, labels, logits).loss
    assert loss.dtype == torch.float32
    same = features.detach().float().requires_grad_()
    expected = branch(same, labels, logits).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    (got,), (wanted,) = torch.autograd.grad(loss, features), torch.autograd.grad(expected, same)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=2e-4)


def test_inside_a_compiled_model_it_gives_the_same() -> None:
    features, labels, logits = make_batch(dtype=torch.float32)
    branch = make_branch(torch.float32)

    def step(features: Tensor) -> Tensor:
        return 2 * branch(features * 3, labels, logits).loss + features.sum()

    expected = step(features)
    found = torch.compile(step, backend="aot_eager")(features)
    torch.testing.assert_close(found, expected)
    one, other = (gradients(loss, branch, features) for loss in (found, expected))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.049, 1e-3, 1e-5])
@pytest.mark.parametrize("level_loss", ["joint", "separate"])
def test_extreme_similarities_stay_finite(temperature: float, level_loss: str) -> None:
    features, labels, logits = make_batch(dtype=torch.float32)
    with torch.no_grad():  # classes 0 and 1 the same, 2 opposite to them, 3 as it comes
        cells = labels[:, ::2, ::2][:, None]
        features.copy_(torch.where(cells < 2, 3e4, torch.where(cells == 2, -3e4, features)))
    for implementation in ("fused", "textbook"):
        branch = make_branch(
            torch.float32, temperature=temperature, level_loss=level_loss, implementation=implementation
        )
        for dtype in (torch.float32, torch.float16):
            given = features.detach().to(dtype).requires_grad_()
            output = branch(given, labels, logits)
            assert math.isfinite(output.loss.item())
            assert all(g.isfinite().all() for g in gradients(output.loss, branch, given))
            assert all(figure.isfinite() for figure in output.diagnostics.values())


def test_ten_lines_of_plain_pytorch() -> None:
    results = doctest.testmod(branch_module)
    assert results.attempted >= 9
    assert results.failed == 0


def test_the_class_is_exported() -> None:
    assert HiCLBranch is branch_module.HiCLBranch
