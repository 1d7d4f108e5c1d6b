"""The tiny data set in a folder, and train_net's command line run in this process."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.support import tiny
from tests.support.forks import Forks, forks


class Outcome(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that an input error is told in; fails unless that is all there was, with exit status 2."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("train_net: ")
        assert "Traceback" not in self.out + self.err
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    tiny.make_data(root)
    return root


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that forks command-line tools in an instant."""
    with forks(tmp_path_factory.mktemp("tools")) as server:
        yield server


@pytest.fixture(autouse=True)
def data_root(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data set, not to be changed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_root))
    return tiny_root


@pytest.fixture
def own_data_root(data_root: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny data set that the test may spoil."""
    root = tmp_path / "datasets"
    shutil.copytree(tiny_root, root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny.CONFIG)
    return file


@pytest.fixture
def command(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run ``train_net.py --config-file <tiny> ARGUMENTS`` in this process; OUTPUT_DIR is tmp_path/run unless given."""

    def run(*arguments: str, config_file: Path = config) -> Outcome:
        output = () if "OUTPUT_DIR" in arguments else ("OUTPUT_DIR", str(tmp_path / "run"))
        argv = ["train_net.py", "--config-file", str(config_file), *output, *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            tiny.run("train_net", tiny.main)
        said = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), said.out, said.err)

    return run
