"""The trials of the harness, in small; their figures come from ``load_report.py``."""

import pytest

from tests.robustness import trials


def test_planning_is_timed_on_as_many_cells_as_asked(tmp_path):
    assert trials.planning_seconds(tmp_path, 50) > 0


@pytest.mark.slow
def test_kills_lose_nothing_and_run_nothing_twice(tmp_path):
    found = trials.kills(tmp_path, cells=5, seconds=0.5, count=5, seed=3)
    assert found["harness killed"] + found["cells killed"] == 6
    for name in ("missing", "run again", "different", "stray", "damaged", "left over"):
        assert found[name] == 0, found
    assert found["exit status of the last run"] == 0


@pytest.mark.slow
def test_two_harnesses_on_one_folder_run_no_cell_twice(tmp_path):
    assert trials.two_at_once(tmp_path) == {"started twice": 0, "done": 10, "first exit": 0, "second exit": 2}


def test_an_inspection_finds_what_is_wrong(tmp_path):
    folder = trials.Folder(tmp_path / "a", 5, 0.0)
    assert folder.run("run").returncode == 0
    assert set(trials.inspect(folder, folder).values()) == {0}
    first, second, third, *_ = folder.cells()
    (first / "result.json").unlink()
    (second / "starts.txt").write_text("start\nagain\n")
    (third / "cell.json").write_text('{"a": 1')
    (third / ".result.json.1.tmp").touch()
    found = trials.inspect(folder, folder)
    assert [found[name] for name in ("missing", "run again", "damaged", "left over")] == [1, 1, 1, 1]
