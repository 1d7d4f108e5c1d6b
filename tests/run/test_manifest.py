"""A run is known by its config, wherever it runs."""

import json
from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.fingerprint import fingerprint
from hicl_d2.engine.trainer import Trainer
from hicl_d2.run.manifest import (
    changed_keys,
    changes_on_resume,
    check_output,
    check_standing,
    config_hash,
    identity,
    read_manifest,
    run_identity,
    standing,
    write_manifest,
)
from tests.support.fixtures import Command


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


# ---------------------------------------------------------------------------------------------------------------------
# What enters a run beside its config


def test_a_manifest_holds_the_identity_and_other_weights_under_one_name_are_another_run(
    config: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(b"one")
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.WEIGHTS", str(weights))
    (tmp_path / "run").mkdir()
    write_manifest(cfg, seed=0, processes=1, data={"tiny_train": "0123456789"})
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["identity"] == run_identity(cfg, {"tiny_train": "0123456789"}).parts()
    assert manifest["identity"]["weights"].startswith("sha256:")
    assert check_output(cfg, resume=True) == "fresh"
    weights.write_bytes(b"two")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"MODEL\.WEIGHTS .*model_final\.pth had another content"):
            check_output(cfg, resume)
    weights.unlink()  # what is not there is not needed to go on
    assert check_output(cfg, resume=True) == "fresh"
    del manifest["identity"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    weights.write_bytes(b"three")
    assert check_output(cfg, resume=True) == "fresh"  # of before contents were noted


def test_changed_code_behind_imports_is_another_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_things.py").write_text("A = 1\n")
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path / "run"), "IMPORTS", "['own_things']")
    (tmp_path / "run").mkdir()
    write_manifest(cfg, seed=0, processes=1)
    assert check_output(cfg, resume=True) == "fresh"
    (tmp_path / "own_things.py").write_text("A = 2\n")
    with pytest.raises(InputError, match=r"the code of own_things \(IMPORTS\) has changed"):
        check_output(cfg, resume=True)


def test_a_run_that_went_on_since_it_was_looked_at_is_refused(config: Path, tmp_path: Path) -> None:
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path))
    before = standing(cfg, resume=True)
    check_standing(cfg, True, before)
    write_manifest(cfg, seed=0, processes=1)
    check_standing(cfg, True, before)  # another one began and was killed before its first checkpoint
    (tmp_path / "model_0000002.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    with pytest.raises(InputError, match=r"brought it to model_0000002\.pth; start again with --resume"):
        check_standing(cfg, True, before)
    before = standing(cfg, resume=True)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"has worked on the run .* and finished it"):
        check_standing(cfg, True, before)
    with pytest.raises(InputError, match="finished"):
        check_standing(cfg, True, standing(cfg, resume=True))


def test_a_run_that_finishes_between_the_check_and_the_lock_is_not_overwritten(
    command: Command, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process trains to the end while this one loads its weights."""
    folder = tmp_path / "run"
    load = Trainer.resume_or_load

    def overtaken(trainer: Trainer, resume: bool = True) -> None:
        load(trainer, resume)
        monkeypatch.setattr(Trainer, "resume_or_load", load)
        cfg = trainer.cfg
        write_manifest(cfg, seed=cfg.SEED, processes=1)
        (folder / "metrics.json").write_text('{"iteration": 5, "total_loss": 1.0}\n')
        (folder / "result.json").write_text('{"status": "finished"}')

    folder.mkdir()
    monkeypatch.setattr(Trainer, "resume_or_load", overtaken)
    for arguments in (("--resume",), ()):
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
        done = command(*arguments)
        assert done.code == (2 if not before or not arguments else 0)
        assert "finished" in done.err
        assert (folder / "result.json").read_text() == '{"status": "finished"}'
        assert (folder / "metrics.json").read_text() == '{"iteration": 5, "total_loss": 1.0}\n'
        assert not list(folder.glob("*.pth"))


def test_data_with_other_files_are_not_gone_on_with(
    config: Path, own_data_root: Path, tmp_path: Path
) -> None:
    before = fingerprint("tiny_train")
    assert fingerprint("tiny_train") == before
    cfg = _cfg(config, "OUTPUT_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    write_manifest(cfg, seed=0, processes=1, images=6, data={"tiny_train": before, "tiny_val": "0"})
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None

    def changes(data: dict[str, str]) -> list[str]:
        return changes_on_resume(manifest, cfg, 1, device="cpu", images=6, data=data)

    assert changes({"tiny_train": before}) == []
    assert changes({"tiny_train": before, "tiny_val": "1"}) == ["the files of tiny_val are others"]
    image = own_data_root / "tiny" / "images" / "train" / "5.png"
    image.write_bytes(image.read_bytes() + b"more")
    assert fingerprint("tiny_train") != before
    with pytest.raises(InputError, match=r"the training data tiny_train of .* had other files"):
        changes({"tiny_train": fingerprint("tiny_train")})
