"""The built-in runtime's config: what differs from Detectron2's, and what a user may get wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hicl_d2.command.errors import InputError
from hicl_d2.lite import defaults
from hicl_d2.lite.config import CfgNode, configurable, get_cfg


def _write(folder: Path, text: str) -> str:
    file = folder / "a.yaml"
    file.write_text(text)
    return str(file)


def test_a_tag_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = f"!!python/object/apply:pathlib.Path ['{marker}']"
    file = _write(tmp_path, f"OUTPUT_DIR: !!python/object/apply:pathlib.Path.touch [{path}]")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(file)
    assert not marker.exists()


def test_unsafe_yaml_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    file = _write(tmp_path, "DATASETS:\n  TRAIN: !!python/object/apply:eval [\"('a',) * 2\"]")
    cfg = get_cfg()
    cfg.merge_from_file(file, allow_unsafe=True)
    assert cfg.DATASETS.TRAIN == ("a", "a")


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml does not exist"):
        get_cfg().merge_from_file(str(tmp_path / "nowhere.yaml"))


def test_a_config_of_another_version_asks_for_detectron2(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"VERSION 1 .*: this needs Detectron2, .*install"):
        get_cfg().merge_from_file(_write(tmp_path, "VERSION: 1"))


def test_bases_may_form_a_chain_and_the_last_file_wins(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "one.yaml").write_text("SOLVER: {MAX_ITER: 1, GAMMA: 0.5}")
    (tmp_path / "two.yaml").write_text("_BASE_: far/one.yaml\nSOLVER: {MAX_ITER: 2}")
    cfg = get_cfg()
    cfg.merge_from_file(_write(tmp_path, "_BASE_: two.yaml\nSEED: 3"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA, cfg.SEED) == (2, 0.5, 3)


def test_two_configs_share_nothing() -> None:
    first, second = get_cfg(), get_cfg()
    first.MODEL.PIXEL_MEAN.append(1.0)
    first.MODEL.ROI_HEADS.IOU_LABELS.append(2)
    first.SOLVER.MAX_ITER = 1
    assert second.dump() == get_cfg().dump() != first.dump()


def test_no_key_is_listed_twice() -> None:
    def names(node: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            name
            for key, value in node.items()
            for name in (names(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"})
        }

    assert not names(defaults.SEGMENTATION) & names(defaults.DETECTION)
    assert len(names(defaults.SEGMENTATION) | names(defaults.DETECTION)) == len(names(get_cfg()))


def test_a_frozen_config_takes_no_value() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    cfg.COMPUTED_BY_CODE = 3  # keys of this prefix are computed once, frozen or not
    with pytest.raises(KeyError):
        cfg.COMPUTED_BY_CODE = 4


class _Base:
    @configurable
    def __init__(self, size: int, *, name: str = "base") -> None:
        self.size = size
        self.name = name

    @classmethod
    def from_config(cls, cfg: CfgNode, size: int) -> dict[str, Any]:
        return {"size": size * cfg.SCALE}


class _Derived(_Base):
    @configurable
    def __init__(self, *, depth: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.depth = depth

    @classmethod
    def from_config(cls, cfg: CfgNode, size: int) -> dict[str, Any]:
        return {"depth": cfg.DEPTH, **super().from_config(cfg, size)}


def test_a_subclass_adds_to_its_parent_s_arguments() -> None:
    cfg = CfgNode({"SCALE": 2, "DEPTH": 5})
    made = _Derived(cfg, 3, name="mine")
    assert (made.size, made.depth, made.name) == (6, 5, "mine")
    assert _Derived(cfg, size=4).size == 8
    direct = _Derived(size=1, depth=2)
    assert (direct.size, direct.depth, direct.name) == (1, 2, "base")
