"""Records in one block: what they hold, and that reading them copies nothing."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest

from hicl_d2.data.packed import PackedRecords

RECORDS: list[dict[str, Any]] = [
    {"file_name": "a.jpg", "height": 4},
    {},
    {"file_name": "ü.jpg", "segments_info": [{"id": 3}], "size": (2, 3)},
]


def test_records_come_back_as_they_were() -> None:
    packed = PackedRecords(iter(RECORDS))
    assert len(packed) == 3
    assert list(packed) == RECORDS
    assert [packed[index] for index in (-3, -2, -1)] == RECORDS
    assert len(PackedRecords([])) == 0


def test_what_is_done_to_a_record_is_not_kept() -> None:
    packed = PackedRecords(RECORDS)
    packed[0]["height"] = 5
    packed[2]["segments_info"].clear()
    assert list(packed) == RECORDS


@pytest.mark.parametrize("index", [3, -4])
def test_a_record_beyond_the_last_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"{index} of 3"):
        PackedRecords(RECORDS)[index]


def _own_megabytes() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def _read(records: Any, found: Any) -> None:
    before = _own_megabytes()
    for index in range(len(records)):
        records[index]
    found.put(_own_megabytes() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_worker_that_reads_them_all_copies_no_memory() -> None:
    records = [{"file_name": f"{index:080}.jpg"} for index in range(60_000)]
    context = multiprocessing.get_context("fork")
    grown = []
    for each in (records, PackedRecords(records)):
        found = context.SimpleQueue()
        process = context.Process(target=_read, args=(each, found))
        process.start()
        grown.append(found.get())
        process.join()
    of_a_list, packed = grown
    assert packed < of_a_list / 4
