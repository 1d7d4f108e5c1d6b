"""The folder of a matrix: which matrix it belongs to, fingerprints of its data, and the cells of a command."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import write_json
from hicl_d2.command.identity import MISSING
from hicl_d2.command.shipped import MATRIX, find
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.folder import State, states
from hicl_d2.harness.matrix import Contents, Matrix, read_matrix
from hicl_d2.harness.results import measured, never_measured, read_json_file
from hicl_d2.harness.stale import Earlier, earlier_folders

FOLDER_FILE = "matrix.json"
FOLDER_SCHEMA = 1
# Where the tables and the report of shortened cells are, beside those of the full ones.
SHORT_FOLDER = "short"


@dataclass(frozen=True)
class Workspace:
    """A matrix, its folder, the cells that ``--only`` chose, and the state of every cell by slug.

    ``earlier`` are the folders of cells that were trained with another identity, by today's slug.
    """

    matrix: Matrix
    output: Path
    cells: tuple[Cell, ...]
    states: Mapping[str, State]
    earlier: Mapping[str, Earlier] = field(default_factory=dict)

    @property
    def tables(self) -> Path:
        """The folder of tables and report."""
        return self.output / SHORT_FOLDER if self.matrix.is_short else self.output

    def in_state(self, *names: str) -> list[Cell]:
        """Return the chosen cells that are in one of these states."""
        return [cell for cell in self.cells if self.states[cell.slug].name in names]

    def needed(self, retry: Sequence[str]) -> list[Cell]:
        """Return the chosen cells that a run starts: without a result, and not failed for good.

        ``retry`` names what is tried again even so: "failed", or kinds of failure.
        """
        found = []
        for cell in self.cells:
            state = self.states[cell.slug]
            if state.name == files.FAILED and state.failure is not None:
                asked = "failed" in retry or state.failure.kind in retry
                if state.failure.rule.again or asked:
                    found.append(cell)
            elif state.name not in (files.DONE, files.BLOCKED, files.DAMAGED):
                found.append(cell)
        return found

    def obstacles(self) -> dict[str, int]:
        """Return what keeps chosen cells from running here, and how many each."""
        found: dict[str, int] = {}
        for cell in self.cells:
            if cell.obstacle is not None and self.states[cell.slug].name != files.DONE:
                found[cell.obstacle] = found.get(cell.obstacle, 0) + 1
        return found

    def notes(self) -> list[str]:
        """Return what there is to know of the chosen cells: stale ones, damaged ones, changed data, metrics that none has."""
        kinds = Counter(self.earlier[cell.slug].text for cell in self.in_state(files.STALE))
        lines = [f"{text} ({counted(count, 'cell')})" for text, count in kinds.items()]
        lines += [*self.mixed_data(), *self.unmeasured()]
        return lines + [self.states[cell.slug].note for cell in self.in_state(files.DAMAGED)]

    def mixed_data(self) -> list[str]:
        """Return a line for each data set whose files were not the same for all chosen cells that are done."""
        first: dict[str, tuple[str, Cell]] = {}
        lines: dict[str, str] = {}
        for cell in self.in_state(files.DONE):
            for name, content in files.data_of(cell.folder(self.output)).items():
                known, before = first.setdefault(name, (content, cell))
                if content != known and name not in lines:
                    lines[name] = (
                        f"the files of {name} (names or sizes) are others for {cell.name} than for {before.name}: their scores "
                        "do not belong into one table; remove the folder of the older one to train it again"
                    )
        return list(lines.values())

    def unmeasured(self) -> list[str]:
        """Return a line for each metric of the table that no chosen cell that is done has."""
        known = measured(filter(None, (self.states[cell.slug].result for cell in self.cells)))
        notes = (never_measured(metric, "last", known) for metric in self.matrix.metrics)
        return [f"report: metrics: {note}" for note in notes if note is not None]

    def of_older_scheme(self) -> list[Cell]:
        """Return the chosen cells whose only folder has an identity that cannot be compared with today's."""
        return [cell for cell in self.in_state(files.STALE) if self.earlier[cell.slug].is_of_older_scheme]


def open_workspace(matrix_file: Path, output: Path | None, shorten: bool, only: Sequence[str]) -> Workspace:
    """Read the matrix, given by path or name, and the states of its cells; nothing is written.

    Raises InputError for a folder of another matrix and a glob that chooses nothing.
    """
    matrix_file = find(matrix_file, MATRIX)
    matrix = read_matrix(matrix_file, shorten)
    output = output if output is not None else Path("output") / matrix.name
    note = _read_note(output, matrix.name)
    known = _known(note)
    if _says_more(known, matrix.contents):
        matrix = read_matrix(matrix_file, shorten, known)
    adopted, earlier = earlier_folders(matrix.cells, output)
    if adopted:
        cells = (replace(cell, adopted=adopted.get(cell.slug, "")) for cell in matrix.cells)
        matrix = replace(matrix, cells=tuple(cells))
    found = states(matrix.cells, output)
    for slug, before in earlier.items():
        if found[slug].name == files.WAITING:
            found[slug] = State(files.STALE, note=before.text)
    stale = {slug: before for slug, before in earlier.items() if found[slug].name == files.STALE}
    return Workspace(matrix, output, choose(matrix, only), found, stale)


def _known(note: Mapping[str, Any]) -> Contents:
    """Return what the folder's note says of contents; text alone, whatever else is there."""
    known = Contents()
    for name, values in vars(known).items():
        noted = note.get(name)
        items = noted.items() if isinstance(noted, dict) else ()
        values.update({key: value for key, value in items if isinstance(value, str)})
    return known


def _says_more(known: Contents, found: Contents) -> bool:
    """Return whether the note knows the content of something that is not here."""
    return (
        bool(known.data.keys() - found.data.keys())
        or any(text.startswith(MISSING) and name in known.weights for name, text in found.weights.items())
        or any(text == MISSING and name in known.imports for name, text in found.imports.items())
    )


def choose(matrix: Matrix, only: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells whose name or folder matches one of the globs, all if there are none."""
    if not only:
        return matrix.cells
    for glob in only:
        if not any(matches(cell, glob) for cell in matrix.cells):
            raise InputError(
                f"--only {glob} chooses none of the cells; one is called {matrix.cells[0].name!r}"
            )
    return tuple(cell for cell in matrix.cells if any(matches(cell, glob) for glob in only))


def matches(cell: Cell, glob: str) -> bool:
    """Return whether ``glob`` matches the cell's name or its folder's name."""
    return fnmatchcase(cell.name, glob) or fnmatchcase(cell.slug, glob)


def claim(workspace: Workspace) -> None:
    """Note which matrix the folder belongs to, and the fingerprints of its data sets."""
    path = workspace.output / FOLDER_FILE
    matrix = workspace.matrix
    note = _read_note(workspace.output, matrix.name)
    contents = _known(note)
    for name, values in vars(matrix.contents).items():
        there = {key: value for key, value in values.items() if not value.startswith(MISSING)}
        getattr(contents, name).update(there)
    new = {"schema": FOLDER_SCHEMA, "matrix": matrix.name, "data": {}, **contents.as_json()}
    if new != note:
        write_json(path, new)


def _read_note(output: Path, name: str) -> dict[str, Any]:
    """Return the folder's note, empty if it has none; InputError if it is damaged or of another matrix."""
    path = output / FOLDER_FILE
    try:
        if output.exists() and not output.is_dir():
            raise InputError(f"--output {output} is not a folder; choose another one")
        note = read_json_file(path)
        owner, schema = note["matrix"], note["schema"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; remove it if {output} holds the matrix {name}") from None
    if owner != name:
        raise InputError(f"{output} holds the matrix {owner}, not {name}; choose another --output")
    if schema != FOLDER_SCHEMA:
        raise InputError(f"{path} has schema {schema!r} and this harness reads {FOLDER_SCHEMA}")
    return note
