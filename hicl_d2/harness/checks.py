"""Whether the configs of cells can start, asked of the project's train script before the first cell is started.

One process checks every distinct config (cells that differ in their seed alone have one), by ``train_net.py --check-each``.
A config that can start is noted in the matrix's folder, with the state of the code, and is not asked about again; one that
cannot is. A train script of the user's own is not asked: it need not know the option.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from hicl_d2.command.console import Console
from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import write_json
from hicl_d2.harness import TRAIN_SCRIPT
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.defaults import code_digest
from hicl_d2.harness.results import read_json_file

CHECKS_FILE = "checks.json"
# Configs that plan asks about; run asks about all.
PLAN_CHECKS = 32
SHOWN_LINES = 20


@dataclass(frozen=True)
class Checked:
    """What is known of configs: ``broken`` holds the cells that cannot start by the reason, ``passed`` the keys of those that
    can, ``unasked`` how many configs were not asked about."""

    broken: dict[str, list[Cell]] = field(default_factory=dict)
    passed: frozenset[str] = frozenset()
    unasked: int = 0

    def lines(self) -> list[str]:
        """Return a line for each reason, with the cells that it keeps from running."""
        found = []
        for reason, cells in self.broken.items():
            groups = list(dict.fromkeys("/".join(filter(None, cell.group)) for cell in cells))
            more = f" and {counted(len(groups) - 1, 'more config')}" if len(groups) > 1 else ""
            found.append(f"{groups[0]}{more} cannot run ({counted(len(cells), 'cell')}): {reason}")
        rest = len(found) - SHOWN_LINES
        return [*found[:SHOWN_LINES], f"and {counted(rest, 'more reason')}"] if rest > 0 else found


def is_asked(script: Path) -> bool:
    """Return whether a train script is the project's own, which knows --check-each."""
    return script.resolve() == TRAIN_SCRIPT.resolve()


def check(
    cells: Iterable[Cell], script: Path, output: Path, gpus: int, console: Console, most: int | None = None
) -> Checked:
    """Ask about every distinct config of ``cells`` that is not known to start, ``most`` of them at most.

    ``gpus`` is the number of GPUs that a cell may use here. Raises InputError if the train script does not answer.
    """
    if not is_asked(script):
        return Checked()
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(_key(cell, gpus), []).append(cell)
    known = _read_passed(output)
    asked = _spread([alike for key, alike in kinds.items() if key not in known], most)
    broken: dict[str, list[Cell]] = {}
    passed = set(known)
    answers = _ask([_arguments(alike[0], output, gpus) for alike in asked], script, console)
    for alike, reason in zip(asked, answers, strict=True):
        if reason is None:
            passed.add(_key(alike[0], gpus))
        else:
            broken.setdefault(reason, []).extend(alike)
    unasked = sum(key not in known for key in kinds) - len(asked)
    return Checked(broken, frozenset(passed), unasked)


def keep(checked: Checked, output: Path) -> None:
    """Note in the matrix's folder which configs can start."""
    if checked.passed and checked.passed != _read_passed(output):
        content = {"schema": 1, "code": code_digest(), "passed": sorted(checked.passed)}
        write_json(output / CHECKS_FILE, content)


def _read_passed(output: Path) -> frozenset[str]:
    """Return the keys that were noted under today's code; none if the note is absent, older or damaged."""
    try:
        content = read_json_file(output / CHECKS_FILE)
        if content["schema"] == 1 and content["code"] == code_digest():
            return frozenset(key for key in content["passed"] if isinstance(key, str))
    except (OSError, ValueError, LookupError, TypeError, InputError):
        pass
    return frozenset()


def _key(cell: Cell, gpus: int) -> str:
    """Return digits of all that the answer depends on: the identity without its seed, and where the cell runs."""
    parts = cell.identity.parts()
    place = [cell.resolved.get(key) for key in ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS")]
    content = [
        parts["config"],
        parts["weights"],
        parts["data"],
        parts["imports"],
        place,
        _processes(cell, gpus),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _processes(cell: Cell, gpus: int) -> int:
    return max(1, min(cell.resources.gpus, gpus))


def _arguments(cell: Cell, output: Path, gpus: int) -> list[str]:
    count = _processes(cell, gpus)
    words = ["--config-file", str(cell.config), "--resume"]
    words += ["--num-gpus", str(count)] if count > 1 else []
    return [*words, *cell.arguments(), "OUTPUT_DIR", str(cell.folder(output).absolute())]


def _spread(kinds: Sequence[list[Cell]], most: int | None) -> list[list[Cell]]:
    """Return ``most`` of the kinds, those of different config files first."""
    if most is None or len(kinds) <= most:
        return list(kinds)
    by_file: dict[Path, list[list[Cell]]] = {}
    for alike in kinds:
        by_file.setdefault(alike[0].config, []).append(alike)
    rounds = zip_longest(*by_file.values())
    return [alike for each in rounds for alike in each if alike is not None][:most]


def _ask(starts: Sequence[list[str]], script: Path, console: Console) -> list[str | None]:
    """Return for each start why it cannot be made, None if it can."""
    if not starts:
        return []
    found: list[str | None] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines, tempfile.TemporaryFile() as errors:
        lines.writelines(f"{json.dumps(start)}\n" for start in starts)
        lines.seek(0)
        words = [sys.executable, str(script), "--check-each", "-"]
        process = subprocess.Popen(words, stdin=lines, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for answer in _answers(process.stdout):
                found.append(None if answer["ok"] else str(answer.get("error")))
                console.progress(
                    f"checking configs {len(found)}/{len(starts)}", is_last=len(found) == len(starts)
                )
            process.wait()
        finally:
            process.kill()
            process.wait()
        if len(found) < len(starts):
            errors.seek(0)
            raise InputError(_no_answer(errors.read(), process.returncode))
    return found[: len(starts)]


def _answers(lines: IO[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the answers; what else is printed, by modules of the user's own, is passed over."""
    for line in lines or ():
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and isinstance(answer.get("ok"), bool):
            yield answer


def _no_answer(errors: bytes, status: int) -> str:
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"the configs could not be checked (exit {status}): {lines[-1] if lines else 'no message'}"
