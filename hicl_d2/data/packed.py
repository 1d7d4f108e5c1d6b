"""Records in one block of memory, which loader workers share with the process that started them."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class PackedRecords:
    """A list of records that takes no more memory the more workers read it.

    Python counts references in the objects themselves: a worker that reads a list of dictionaries is given a copy of every page
    that it looks at, in the end of the whole list. Indexing makes a record anew.
    """

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        packed: Sequence[bytes] = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a record as it was given. Raises IndexError beyond the last."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = index % len(self)
        record: dict[str, Any] = pickle.loads(self._bytes[self._ends[place] : self._ends[place + 1]].data)
        return record
