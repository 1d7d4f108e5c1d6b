"""The README is short, and what it tells people to write works as it stands; tests/docs runs its blocks."""

import re
from pathlib import Path

import pytest
import yaml

from hicl_d2.config import get_hicl_cfg, load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 130


def test_attaching_takes_five_lines() -> None:
    (code,) = blocks("python")
    after = code[code.index("branch = attach(") :]
    assert len(after.splitlines()) <= 5


@pytest.mark.parametrize("block", blocks("yaml"))
def test_its_config_is_read(block: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block)
    cfg = load_config(file)
    assert cfg.dump() != get_hicl_cfg().dump()
    assert yaml.safe_load(block)["MODEL"]["HICL"]["BASE"] == cfg.MODEL.HICL.BASE


def test_the_places_it_names_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", README, flags=re.MULTILINE)
    places = [place for row in rows for place in re.findall(r"`([^`]+)`", row)]
    assert places
    for place in places:
        assert (ROOT / place).exists(), place


def test_every_recipe_is_said_to_have_been_run_or_not() -> None:
    """What the README lists as never run is what lies in configs/ beside the two kinds that were."""
    limits = README[README.index("## Limits") : README.index("## Where things are")]
    named = {"parts": "`configs/parts`", "camvid": "CamVid", "cityscapes": "Cityscapes", "ade20k": "ADE20K"}
    named |= {"coco_stuff_10k": "COCO-Stuff", "coco_stuff_164k": "COCO-Stuff"}
    for folder in (path for path in (ROOT / "configs").iterdir() if path.is_dir()):
        assert named[folder.name] in limits
