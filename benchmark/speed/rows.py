"""Rows of measurements as a CSV file."""

import csv
from pathlib import Path
from typing import Any

from hicl_d2.command.files import atomic_open

__all__ = ["write_csv"]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of all tables to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
