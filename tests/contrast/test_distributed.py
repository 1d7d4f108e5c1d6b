"""Two processes with half a batch each against one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from tests.contrast.batches import make_branch
from tests.contrast.two_processes import CASES, batches, results, run

Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Run both processes once, all cases in them."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(run, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


GATHERED = [case for case, settings in CASES.items() if settings.get("gather")]


@pytest.mark.parametrize("case", GATHERED)
def test_gathered_processes_equal_one(case: str, ranks: list[Found]) -> None:
    branch = make_branch(**CASES[case])
    whole = results(branch, branch, batches(case))
    for number, expected in enumerate(whole):
        one, other = (rank[case][number] for rank in ranks)
        assert expected["loss"] > 0
        torch.testing.assert_close((one["loss"] + other["loss"]) / 2, expected["loss"], rtol=1e-9, atol=1e-9)
        features = torch.cat([one["features"], other["features"]]) / 2
        torch.testing.assert_close(features, expected["features"], rtol=1e-7, atol=1e-9)
        for got, wanted, same in zip(
            one["parameters"], expected["parameters"], other["parameters"], strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
            assert torch.equal(got, same)


@pytest.mark.parametrize("case", ["bank", "small_bank"])
def test_the_bank_is_the_same_everywhere(case: str, ranks: list[Found]) -> None:
    for one, other in zip(ranks[0][case], ranks[1][case], strict=True):
        assert one["state"].keys() == other["state"].keys()
        for name, value in one["state"].items():
            assert torch.equal(value, other["state"][name]), name
    assert ranks[0][case][1]["state"]["bank.written"].sum() > 0
    assert ranks[0][case][1]["state"]["bank.rows"].any()


def test_without_gathering_each_process_is_on_its_own(ranks: list[Found]) -> None:
    branch = make_branch()
    for rank, found in enumerate(ranks):
        half = slice(2 * rank, 2 * rank + 2)
        steps = [tuple(part.detach()[half] for part in batch) for batch in batches("alone")]
        for expected, got in zip(results(branch, branch, steps), found["alone"], strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(got["loss"], expected["loss"], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(got["features"], expected["features"], rtol=1e-12, atol=1e-12)
