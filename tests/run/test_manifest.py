"""A run is known by its config, wherever it runs."""

from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.run.manifest import (
    changed_keys,
    check_output,
    config_hash,
    identity,
    read_manifest,
    write_manifest,
)


def _cfg(config: Path, *opts: str) -> CfgNode:
    return load_config(config, opts)


def test_the_hash_does_not_depend_on_where_a_run_happens(config: Path) -> None:
    here = _cfg(config)
    elsewhere = _cfg(config, "OUTPUT_DIR", "/else", "MODEL.DEVICE", "cuda", "DATALOADER.NUM_WORKERS", "9")
    assert config_hash(here) == config_hash(elsewhere)
    assert len(config_hash(here)) == 12


@pytest.mark.parametrize(
    "override", [("SEED", "8"), ("MODEL.HICL.WEIGHT", "0.2"), ("DATASETS.TEST", "('x',)")]
)
def test_the_hash_depends_on_everything_else(override: tuple[str, str], config: Path) -> None:
    assert config_hash(_cfg(config)) != config_hash(_cfg(config, *override))


def test_lists_and_tuples_are_the_same(config: Path) -> None:
    as_list, as_tuple = _cfg(config, "SOLVER.STEPS", "[1, 2]"), _cfg(config, "SOLVER.STEPS", "(1, 2)")
    assert config_hash(as_list) == config_hash(as_tuple)


def test_changed_keys_are_those_that_differ_or_are_missing_on_one_side() -> None:
    assert changed_keys({"a": 1, "b": 2, "c": None}, {"b": 3, "a": 1, "d": None}) == ["b", "c", "d"]


def test_a_manifest_is_written_once(config: Path, tmp_path: Path) -> None:
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path))
    assert write_manifest(cfg, seed=5, processes=2)
    first = read_manifest(tmp_path)
    assert first is not None
    assert (first["seed"], first["processes"], first["config_hash"]) == (5, 2, config_hash(cfg))
    assert first["config"] == identity(cfg)
    assert not write_manifest(cfg, seed=6, processes=1)
    assert read_manifest(tmp_path) == first


def test_what_starting_means(config: Path, tmp_path: Path) -> None:
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path / "run"))
    assert check_output(cfg, resume=False) == check_output(cfg, resume=True) == "fresh"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    assert check_output(cfg, resume=False) == "fresh"
    write_manifest(cfg, seed=0, processes=1)
    assert check_output(cfg, resume=False) == "fresh"  # it ended before its first checkpoint
    (tmp_path / "run/last_checkpoint").write_text("model_0000002.pth")
    assert check_output(cfg, resume=True) == "resume"
    with pytest.raises(InputError, match=r"up to model_0000002\.pth; add --resume"):
        check_output(cfg, resume=False)
    (tmp_path / "run/result.json").write_text("{}")
    assert check_output(cfg, resume=True) == "finished"
    with pytest.raises(InputError, match="finished"):
        check_output(cfg, resume=False)


def test_the_first_differences_are_named_and_the_rest_counted(config: Path, tmp_path: Path) -> None:
    write_manifest(_cfg(config, "OUTPUT_DIR", str(tmp_path)), seed=0, processes=1)
    opts = [
        "SEED",
        "1",
        "SOLVER.BASE_LR",
        "1.0",
        "SOLVER.MAX_ITER",
        "9",
        "SOLVER.MOMENTUM",
        "0.5",
        "INPUT.FORMAT",
        "BGR",
    ]
    with pytest.raises(InputError) as caught:
        check_output(_cfg(config, "OUTPUT_DIR", str(tmp_path), *opts), resume=False)
    message = str(caught.value)
    assert "INPUT.FORMAT is 'RGB' there and 'BGR' here, SEED is 7 there and 1 here" in message
    assert "and 2 more keys differ" in message
    assert "choose another OUTPUT_DIR" in message
