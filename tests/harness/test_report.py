"""The report, looked at by a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hicl_d2.harness import folder as files
from hicl_d2.harness.report import write_report
from hicl_d2.harness.report.curves import band, read_curve
from hicl_d2.harness.report.pictures import largest
from hicl_d2.harness.report.plots import learning_curves
from hicl_d2.harness.workspace import open_workspace

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLASSES = ("sky", "building", "road", "tree", "car", "pedestrian", "bicyclist", "sign")


def finish(cell, output, gain):
    """Write what a training of ``cell`` would leave."""
    rng = np.random.default_rng([cell.seed, *cell.slug.encode()])
    shared = np.random.default_rng(cell.seed).normal(0, 0.8)
    folder = cell.folder(output)
    files.write_manifest(cell, "test", output, ["python", "train_net.py", "--config-file", str(cell.config)])
    files.end_attempt(folder, files.new_attempt(folder, files.RUNNING), 60.0, 0, None)
    final = 60 + shared + gain + rng.normal(0, 0.3)
    lines = []
    for step in range(20, 401, 20):
        noise = rng.normal(0, 0.03)
        lines.append({"iteration": step - 1, "total_loss": 0.4 + 2.0 * 0.99**step - gain / 40 + noise})
        if step % 80 == 0:
            lines.append({"iteration": step - 1, "sem_seg/mIoU": final * (1 - 0.985**step)})
    (folder / "metrics.json").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 4'
    )
    ious = {name: final + rng.normal(gain, 2) for name in CLASSES}
    result = {
        "schema": 1,
        "status": "finished",
        "iterations": 400,
        "metrics": {
            name: {"iteration": 400, "sem_seg/mIoU": final + more, "sem_seg/mAcc": final + 8}
            for name, more in (("last", 0.0), ("best", 0.4))
        },
        "class_iou": ious,
        "seconds": {"total": 300.0, "per_iteration": 0.5 + abs(gain) / 20 + rng.normal(0, 0.01)},
        "peak_memory_mb": 9000.0,
        "device": "cpu <b>",
        "versions": {"runtime": "lite"},
    }
    (folder / "pictures").mkdir()
    scores = {}
    for number in range(4):
        name = f"frame_{number}"
        scores[name] = round(final + (number - 1.5) * 4 * gain, 2)
        image = Image.new("RGB", (960, 260), "white")
        draw = ImageDraw.Draw(image)
        for panel in range(3):
            draw.rectangle(
                (panel * 320 + 4, 24, panel * 320 + 316, 256), fill=(60 + 50 * panel, 90 + number * 30, 140)
            )
        draw.text((8, 6), f"{name} {cell.method}", "black")
        image.save(folder / "pictures" / f"{name}.png")
    (folder / "pictures" / "scores.json").write_text(json.dumps(scores))
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def workspace(bench):
    gains = {"baseline": 0.0, "pixel": 0.5, "ours": 1.4}
    extra = {"default": 0.0, "t=<1>": -0.8, "t=2": 0.6}
    methods = {name: {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": name}} for name in gains}
    bench.matrix(
        methods=methods,
        datasets=["cityscapes"],
        ablations={"default": None, "t=<1>": {"overrides": {"T": 1}}, "t=2": {"overrides": {"T": 2}}},
        exclude=[{"method": ["baseline", "pixel"], "ablation": "t=*"}],
        baseline={"method": "baseline", "ablation": "default"},
        seeds=[1, 2, 3, 4, 5],
        report={"compare": ["baseline", "ours"], "metrics": ["sem_seg/mIoU", "sem_seg/mAcc"]},
    )
    found = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    for cell in found.cells[:-1]:
        finish(cell, bench.output, gains[cell.method] + extra[cell.ablation])
    return open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])


def test_curves_skip_what_is_cut_off_and_a_band_is_mean_and_deviation(tmp_path):
    lines = ['{"iteration": 19, "total_loss": 2.0}', '{"iteration": 39, "total_loss": 1.0}', '{"itera']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    curve = read_curve(tmp_path, "total_loss")
    assert curve.to_dict() == {20: 2.0, 40: 1.0}
    assert read_curve(tmp_path / "absent", "total_loss").empty
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "total_loss": 2.5, "loss_hicl": 2.0}\n')
    assert read_curve(tmp_path, "total_loss").to_dict() == {1: 0.5}
    assert read_curve(tmp_path, "loss_hicl").to_dict() == {1: 2.0}
    found = band([curve, curve + 2])
    assert found["mean"].to_dict() == {20: 3.0, 40: 2.0}
    assert found["std"].to_dict() == pytest.approx({20: 2**0.5, 40: 2**0.5})


def test_with_more_methods_than_colours_the_compared_ones_are_drawn_and_the_rest_counted(bench):
    names = ["baseline", *(f"peer_{number}" for number in range(9)), "ours"]
    bench.matrix(
        methods={n: {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": n}} for n in names},
        seeds=[1],
        baseline="baseline",
        report={"compare": ["peer_8", "ours"]},
    )
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    for cell in workspace.cells:
        finish(cell, bench.output, 0.0)
    figure = learning_curves(workspace, workspace.cells[0].group[:2])
    for axis in figure.axes:
        legend = axis.get_legend()
        drawn = [text.get_text() for text in legend.get_texts()]
        assert drawn == ["baseline", "peer_0", "peer_1", "peer_2", "peer_3", "peer_4", "peer_8", "ours"]
        assert legend.get_title().get_text() == "3 more not drawn"


def test_the_pictures_are_those_of_the_largest_gains_and_losses(workspace):
    pairs = largest(workspace, ("cityscapes", "small"))
    gains = [pair.gain for pair in pairs]
    assert len({pair.image for pair in pairs}) == len(pairs) == 4
    best, worst = pairs[0], next(pair for pair in pairs if pair.gain < 0)
    scores = {
        cell.method: json.loads((cell.folder(workspace.output) / "pictures" / "scores.json").read_text())
        for cell in workspace.cells
        if cell.seed == best.seed and cell.ablation == "default"
    }
    assert best.gain == scores["ours"][best.image] - scores["baseline"][best.image] == max(gains)
    assert worst.gain == min(gains)
    assert best.image == "frame_3"
    assert worst.image == "frame_0"


def test_the_report_is_one_file_that_needs_nothing_else(workspace):
    page = write_report(workspace).read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)
    assert "t=&lt;1&gt;" in page
    assert "cpu &lt;b&gt;" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for kind in ("differences", "class_differences", "curves", "cost"):
        name = f"{kind}-cityscapes-small"
        plot = workspace.output / "plots" / f"{name}.png"
        with Image.open(plot) as image:
            assert image.width > 400
        assert (workspace.output / "plots" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_few_pairs_have_neither_interval_nor_colour_and_the_columns_are_explained(workspace):
    page = write_report(workspace).read_text()
    assert 'class="gain"' not in page.partition('id="section-pictures"')[0].partition("<main>")[2]
    assert "from six pairs on" in page
    for column in ("identity", "commit", "host", "device", "runtime", "started", "attempts"):
        assert f"{column}" in page.partition('id="section-provenance"')[2].partition("<table")[0].lower()


def test_started_is_when_the_attempt_began_that_ran_last(workspace):
    cell = workspace.cells[0]
    folder = cell.folder(workspace.output)
    first = files.last_attempt(folder)
    files.save_attempt(folder, first | {"started": "2026-01-01T00:00:00+00:00"})
    second = files.new_attempt(folder, files.RUNNING)
    files.save_attempt(folder, second | {"started": "2026-02-02T00:00:00+00:00"})
    third = files.new_attempt(folder, files.QUEUED)
    files.save_attempt(folder, third | {"started": "2026-03-03T00:00:00+00:00"})
    page = write_report(workspace).read_text()
    assert "2026-02-02T00:00:00" in page
    assert "2026-01-01T00:00:00" not in page
    assert "2026-03-03T00:00:00" not in page


def test_a_report_of_nothing_is_a_page_too(bench):
    bench.matrix()
    empty = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    bench.output.mkdir()
    page = write_report(empty).read_text()
    assert page.count('class="absent"') == 2
    assert "<svg" not in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_tables_and_the_plots(workspace, tmp_path):
    page = write_report(workspace)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "report.png"
    dump = subprocess.run(
        [BROWSER, *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    tables = dict(re.findall(r'<table[^>]*id="(\w+)">(.*?)</table>', dump, re.DOTALL))
    assert set(tables) == {"results", "published", "provenance"}
    assert tables["results"].count("<tr") == 1 + 5
    assert "1 of 5 missing" in tables["results"]
    assert tables["provenance"].count("<details>") == 25
    assert "Mask2Former R50" in tables["published"]
    assert dump.count("<svg") == 4
    subprocess.run(
        [
            BROWSER,
            *options,
            "--window-size=1280,5200",
            "--hide-scrollbars",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        check=True,
        timeout=120,
    )
    with Image.open(shot) as image:
        assert image.width == 1280
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 1000  # plots and pictures were drawn
