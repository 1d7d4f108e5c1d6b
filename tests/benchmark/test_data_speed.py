"""The speed benchmarks of the loader and the evaluator at tiny sizes: that they run, and what they print."""

import evaluator_speed
import loader_speed
import numpy as np
import pytest
import torch
from speed.targets import verdict

from tests.support.plain_mapper import PlainMapper


def _targets(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("target: ")]


class PlainEvaluator:
    """A peer that keeps every prediction."""

    def __init__(self, name: str, distributed: bool) -> None:
        self.kept: list[bytes] = []

    def reset(self) -> None:
        self.kept = []

    def process(self, inputs: object, outputs: list[dict[str, torch.Tensor]]) -> None:
        self.kept += [output["sem_seg"].argmax(dim=0).numpy().tobytes() for output in outputs]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put plain peers in the place of Detectron2's, which may not be installed."""
    found = {"DatasetMapper": PlainMapper, "SemSegEvaluator": PlainEvaluator}
    for script in (loader_speed, evaluator_speed):
        monkeypatch.setattr(script, "original", lambda module, name: found.get(name))


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (loader_speed, evaluator_speed):
        monkeypatch.setattr(script, "original", lambda module, name: None)


@pytest.mark.usefixtures("peers")
def test_quick_run_of_the_loader_compares_with_and_without_colours(capsys: pytest.CaptureFixture) -> None:
    assert loader_speed.main(["--quick", "--images", "3", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    for mapper in ("peer", "ours", "ours, decoded files kept"):
        assert printed.count(f"\n| {mapper} | ") == 2
    assert len(_targets(printed)) == 4


def test_a_mapper_with_another_output_is_no_peer(tmp_path) -> None:
    records = loader_speed.make_records(tmp_path, 2)
    given = {"file_name": "", "image": torch.zeros(3, 2, 2), "sem_seg": torch.zeros(2, 2)}
    loader_speed.check_equal(lambda record: given, {"same": lambda record: given}, records)
    other = {**given, "sem_seg": torch.ones(2, 2)}
    with pytest.raises(AssertionError, match="other gives another sem_seg"):
        loader_speed.check_equal(lambda record: given, {"other": lambda record: other}, records)


@pytest.mark.usefixtures("peers")
def test_quick_run_of_the_evaluator_prints_a_row_for_each_and_its_targets(
    capsys: pytest.CaptureFixture,
) -> None:
    assert evaluator_speed.main(["--quick", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    for evaluator in ("ours", "ours, boundaries and object sizes", "peer"):
        assert printed.count(f"\n| {evaluator} | ") == 1
    assert [line.split("; measured")[0] for line in _targets(printed)] == [
        "target: 5 x 64 x 96: at least 4 x as fast as the peer",
        "target: 5 x 64 x 96: no memory per image",
    ]


@pytest.mark.usefixtures("without_peers")
@pytest.mark.parametrize("script", [loader_speed, evaluator_speed])
def test_without_detectron2_ours_is_measured_alone(script, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--quick", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ours")]
    assert len(rows) >= 2
    assert all("needs Detectron2" in row for row in rows)
    assert "\n| peer" not in printed
    assert not any("peer" in line for line in _targets(printed))


def test_growth_is_that_of_the_state() -> None:
    class Keeper:
        def __init__(self) -> None:
            self.kept: list[np.ndarray] = []

        def reset(self) -> None:
            self.kept = []

        def process(self, inputs: object, outputs: object) -> None:
            self.kept.append(np.zeros(1000))

    assert evaluator_speed.growth(Keeper(), None, None) > 8000


def test_verdict_says_what_was_asked_and_reached() -> None:
    assert verdict("a", "at most 2", "3", False) == "target: a: at most 2; measured 3; missed"
    assert verdict("a", "at most 2", "1", True).endswith("; met")
