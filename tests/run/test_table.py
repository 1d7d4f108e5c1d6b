"""The table at the end of a run: figures as ever, bars where they are asked for."""

from pathlib import Path

import pytest

from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.run import result, setup
from hicl_d2.tools import train

METRICS = {
    "sem_seg/mIoU": 45.0,
    "sem_seg/IoU-road": 90.0,
    "sem_seg/IoU-sky": 0.0,
    "sem_seg/IoU-tram": float("nan"),
}


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_hicl_cfg()
    cfg.DATASETS.TEST = ("some_val",)
    return cfg


def test_each_class_has_a_line_and_the_means_follow(cfg: CfgNode) -> None:
    assert result.table(cfg, METRICS).splitlines() == [
        "| class   | IoU   |",
        "|---------|-------|",
        "| road    | 90.00 |",
        "| sky     | 0.00  |",
        "| tram    | -     |",
        "",
        "| mean   | %     |",
        "|--------|-------|",
        "| mIoU   | 45.00 |",
    ]


def test_each_of_several_data_sets_has_a_table(cfg: CfgNode, capsys: pytest.CaptureFixture[str]) -> None:
    cfg.DATASETS.TEST = ("one", "other")
    metrics: dict[str, float | None] = {
        f"{name}/sem_seg/{metric}": value
        for name, value in (("one", 10.0), ("other", 20.0))
        for metric in ("mIoU", "IoU-road")
    }
    train._report(cfg, metrics, Path("result.json"), None)
    shown = capsys.readouterr().out
    for name, figure in (("one", "10.00"), ("other", "20.00")):
        table = result.table(cfg, metrics, name)
        assert table.count(figure) == 2
        assert f"\n{name}\n\n{table}\n" in shown
    assert result.class_iou(cfg, metrics) == {"road": 10.0}


def test_bars_are_as_long_as_the_figures(cfg: CfgNode) -> None:
    plain, drawn = (result.table(cfg, METRICS, bars=bars).splitlines() for bars in (False, True))
    assert len(plain) == len(drawn)
    bars = [line.split("|")[3].strip() for line in drawn[2:5]]
    width = result.BAR_WIDTH
    assert [len(bar) for bar in bars] == [width] * 3
    assert bars[0].count("█") == int(0.9 * width)
    assert bars[1:] == ["·" * width] * 2
    assert [line.split("|")[1:3] for line in drawn[2:5]] == [line.split("|")[1:3] for line in plain[2:5]]


@pytest.mark.parametrize(
    ("asked", "said"), [("cpu", "MODEL.DEVICE is cpu"), ("cuda", "no CUDA device"), ("cuda:1", "no CUDA")]
)
def test_the_device_is_said_with_the_reason(cfg: CfgNode, asked: str, said: str) -> None:
    cfg.MODEL.DEVICE = asked
    line = setup.device_in_words(cfg, "cpu")
    assert line.startswith("running on the CPU: ")
    assert said in line
