"""The speed benchmark at tiny sizes: what it prints and writes, and that its gauges read right."""

import csv
from dataclasses import replace

import contrast_speed
import pytest
import torch
from speed.cases import IGNORE, Case, make_batch, make_contrast, make_floor, make_labels, make_step
from speed.meter import gigaflops, measure, median_ratio, peak_bytes

CPU = torch.device("cpu")
TINY = Case(2, 64, 64, 5, channels=16, anchors=24, components=40)


def test_quick_run_prints_tables_and_targets_and_writes_every_row(tmp_path, capsys):
    output = tmp_path / "new" / "speed.csv"
    assert contrast_speed.main(["--quick", "--device", "cpu", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for table in ("methods", "cells", "classes", "anchors", "components", "bank"):
        assert f"## {table}" in printed
    targets = [line for line in printed.splitlines() if line.startswith("target: ")]
    assert len(targets) == 13
    assert all("; measured " in line and line.endswith(("; met", "; missed")) for line in targets)
    with output.open() as file:
        rows = list(csv.DictReader(file))
    methods = [row for row in rows if row["table"] == "methods"]
    assert len(methods) == 2 * 2 * 10
    assert {row["row"] for row in methods} >= {"hicl", "hicl textbook", "pixel_memory", "matrix products"}
    assert all(float(row["ms"]) > 0 and float(row["to_floor"]) > 0 for row in rows)
    assert next(row["to_first"] for row in rows if row["table"] == "bank") == "1.0"


def test_steps_share_a_batch_and_leave_no_gradient_on_it():
    batch = make_batch(TINY, CPU)
    plain = make_step(make_contrast("hicl", TINY), batch, torch.contiguous_format)
    last = make_step(make_contrast("hicl", TINY), batch, torch.channels_last)
    plain()
    last()
    assert batch[0].grad is None
    assert not batch[0].requires_grad


def test_labels_hold_every_class_in_blobs_and_some_ignored_pixels():
    labels = make_labels(Case(2, 256, 512, 19))
    for image in labels:
        assert set(image.unique().tolist()) == {*range(19), IGNORE}
        assert 0.05 <= (image == IGNORE).float().mean() < 0.1
    inside = (labels[:, 1:, 1:] == labels[:, :-1, 1:]) & (labels[:, 1:, 1:] == labels[:, 1:, :-1])
    assert inside.float().mean() > 0.9
    windows = labels.unfold(1, 16, 16).unfold(2, 16, 16).flatten(-2)
    pure = (windows == windows[..., :1]).all(-1)
    assert 0.2 < pure.float().mean() < 0.9


def test_predictions_are_mostly_right():
    features, labels, logits = make_batch(replace(TINY, height=256, width=256), CPU)
    assert features.shape == (2, 16, 64, 64)
    at_cells = labels[:, 2::4, 2::4]
    labelled = at_cells != IGNORE
    share = (logits.argmax(1) == at_cells)[labelled].float().mean()
    assert 0.75 < share < 0.95


def test_floor_counts_the_products_of_the_loss():
    rows, pairs = TINY.anchors + TINY.components, TINY.anchors * TINY.components
    expected = 3 * 2 * (rows * (16 * 256 + 256 * 256) + pairs * 256) / 1e9
    assert gigaflops(make_floor(TINY, CPU)) == pytest.approx(expected)


def test_hicl_needs_hardly_more_products_than_the_floor():
    step = make_step(make_contrast("hicl", TINY), make_batch(TINY, CPU), torch.contiguous_format)
    floor = gigaflops(make_floor(TINY, CPU))
    assert floor <= gigaflops(step) < 1.2 * floor


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_repeats_itself_and_leaves_nothing_behind(layout):
    contrast = make_contrast("hicl", replace(TINY, bank=2)).eval()
    batch = make_batch(TINY, CPU)
    step = make_step(contrast, batch, layout)
    seen = []
    contrast.embedding.hidden[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    step()
    step()
    assert torch.equal(*seen)
    assert seen[0].abs().sum() > 0
    assert contrast.embedding.hidden[0].weight.grad is None
    assert (contrast.bank.written == 2).all()


def test_peak_holds_the_gradient_at_the_feature_map_time_after_time():
    batch = make_batch(replace(TINY, height=512, width=512), CPU)
    step = make_step(make_contrast("pixel", TINY, anchors=4), batch, torch.contiguous_format)
    peaks = [peak_bytes(step, CPU) for _ in range(3)]
    assert min(peaks) >= batch[0].numel() * 4
    assert max(peaks) < 1.1 * min(peaks)


def test_peak_counts_what_is_held_at_once():
    def step():
        for _ in range(3):
            first = torch.zeros(1000, 1000)
            second = first + 1
            del first, second

    assert 8e6 <= peak_bytes(step, CPU) < 9e6


def test_steps_take_turns_and_are_warm_when_they_are_timed():
    seen = []
    times = measure({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2, CPU)
    assert seen == ["a", "a", "b", "b"] * 2
    assert [len(each) for each in times.values()] == [2, 2]
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0


def test_linearity_tells_linear_from_quadratic():
    sizes = [1, 2, 4, 8]
    assert contrast_speed.linearity(sizes, [5 + 3 * n for n in sizes]) == pytest.approx(1)
    assert contrast_speed.linearity(sizes, [5 + n * n for n in sizes]) == pytest.approx(2.4)
    assert contrast_speed.linearity(sizes, [5.0, 5.0, 5.0, 5.0]) == float("inf")
