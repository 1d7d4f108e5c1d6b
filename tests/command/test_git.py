"""The commit of the code: that of its own repository, or nothing."""

import subprocess
from pathlib import Path

import pytest

from hicl_d2.command import git


def _git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *settings, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "PROJECT", tmp_path)
    assert git.git_state() == {"commit": None, "dirty": None}
    _git(tmp_path, "init", "-q")
    assert git.git_state()["commit"] is None  # nothing is committed
    (tmp_path / "file").write_text("a")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-qm", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert git.git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "new").write_text("not part of the code")
    assert git.git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert git.git_state() == {"commit": commit, "dirty": True}
    monkeypatch.setattr(git, "PROJECT", tmp_path / "installed")  # within the repository and not of it
    (tmp_path / "installed").mkdir()
    assert git.git_state() == {"commit": None, "dirty": None}
