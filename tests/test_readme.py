"""What the README tells people to write works as it stands."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from hicl_d2.config import get_hicl_cfg, load_config

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_method_alone_runs_in_ten_lines() -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 10
    seen: dict[str, torch.Tensor] = {}
    exec(compile(code, "README.md", "exec"), seen)
    assert seen["loss"] > 0
    assert seen["features"].grad is not None
    assert seen["features"].grad.any()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_its_config_is_read(block: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block)
    cfg = load_config(file)
    assert cfg.dump() != get_hicl_cfg().dump()
    assert yaml.safe_load(block)["MODEL"]["HICL"]["BASE"] == cfg.MODEL.HICL.BASE


def test_the_places_it_names_exist() -> None:
    root = Path(__file__).parent.parent
    places = re.findall(r"^\| `([^`]+)`", README, flags=re.MULTILINE)
    assert places
    for place in places:
        assert (root / place).exists(), place
