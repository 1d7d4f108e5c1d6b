"""The table of cells: the same columns everywhere, a bar of each cell's iterations beside them on a terminal."""

import os
import pty
import subprocess

from hicl_d2.harness.status import BAR_WIDTH, describe
from hicl_d2.harness.workspace import open_workspace


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
    main, side = pty.openpty()
    command = bench.command("--watch", verb="status")
    process = subprocess.Popen(command, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm"})
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait() == 0
    assert shown.decode().count("█" * BAR_WIDTH) == 4
