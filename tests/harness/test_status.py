"""The table of cells: the same columns everywhere, a bar of each cell's iterations beside them on a terminal."""

from hicl_d2.harness.status import BAR_WIDTH, describe
from hicl_d2.harness.workspace import open_workspace
from tests.support.terminal import run_on_a_terminal


def test_bars_stand_behind_the_columns(bench):
    assert bench.run("--only", "*/seed 1").returncode == 0
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    plain, drawn = describe(workspace).splitlines(), describe(workspace, bars=True).splitlines()
    assert [line.rstrip() for line in plain[:2]] == [line.rstrip() for line in drawn[:2]]
    for before, after in zip(plain[4:], drawn[4:], strict=True):
        assert after.startswith(before.rstrip())
        assert after.count("█") == (BAR_WIDTH if "3/3" in before else 0)
    assert sum("█" in line for line in drawn) == 2


def test_a_terminal_that_watches_gets_bars(bench):
    assert bench.run().returncode == 0
    shown = run_on_a_terminal(bench.command("--watch", verb="status"))
    assert shown.count("█" * BAR_WIDTH) == 4
