"""Reading YAML that strangers wrote: config files with their ``_BASE_`` chain, and matrix files.

A tag that would run code, a key that is given twice and a document that grows without bounds by its aliases are refused
with file and line. Values are plain: numbers, text, lists, mappings; a date is text.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hicl_d2.command.errors import InputError, one_line
from hicl_d2.command.expression import list_of_range
from hicl_d2.command.files import check_regular, expanded
from hicl_d2.command.shipped import CONFIG, find, locate

BASE_KEY = "_BASE_"
# A document's nodes with its aliases written out, and how deep they may be nested.
MOST_NODES = 200_000
MOST_LEVELS = 100
MOST_BYTES = 10 * 2**20
# Bits of a whole number: more than these Python does not print, and so no message could name it.
MOST_BITS = 10_000
# Characters of an escape that no file's name may hold.
NO_TEXT = re.compile("[\0\ud800-\udfff]")
YAML_TAG = "tag:yaml.org,2002:"
PYTHON_TAG, MERGE_TAG = f"{YAML_TAG}python/", f"{YAML_TAG}merge"
# The tag of the one expression in Mask2Former's files, which is computed without running code.
EVAL_TAG = f"{PYTHON_TAG}object/apply:eval"


# The names of a key and of those above it, as they are written: ("SOLVER", "MAX_ITER").
KeyPath = tuple[str, ...]


class Key(NamedTuple):
    """A key of a file: its path, its line (from 1), and what YAML reads it as ("str", "int", "bool", "merge", ...)."""

    path: KeyPath
    line: int
    kind: str


@dataclass(frozen=True)
class Document:
    """A YAML file: its content and its keys in the order of their lines."""

    path: Path
    content: dict[str, Any]
    keys: tuple[Key, ...]

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        """The line of every key."""
        return {key.path: key.line for key in self.keys}

    def place(self, path: KeyPath) -> str:
        """Return where a key stands, for a message: ``file:line``."""
        return f"{self.path}:{self.lines.get(path, 1)}"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a date stays text and that the lists of `list_of_range` are computed."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{YAML_TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_list(loader: yaml.SafeLoader, node: yaml.Node) -> list[int | float]:
    return list_of_range(_expression(node))


def _construct_whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    number: int = loader.construct_yaml_int(node)
    if number.bit_length() > MOST_BITS:
        raise yaml.constructor.ConstructorError(
            None, None, "a whole number of thousands of digits", node.start_mark
        )
    return number


_Loader.add_constructor(EVAL_TAG, _construct_list)
_Loader.add_constructor(f"{YAML_TAG}int", _construct_whole)


class _TextKeyLoader(_Loader):
    """The same, with every key as the text that is written: off, null and 0100 are names."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        node.value = [(self._as_text(key), value) for key, value in node.value]

    @staticmethod
    def _as_text(key: yaml.Node) -> yaml.Node:
        is_scalar = isinstance(key, yaml.ScalarNode)
        return yaml.ScalarNode(f"{YAML_TAG}str", key.value, key.start_mark) if is_scalar else key


def read_yaml(path: Path, kind: str = CONFIG, *, text_keys: bool = False) -> Document:
    """Read the mapping in a YAML file (an empty file holds none); ``kind`` is what the user calls the file.

    With ``text_keys`` a key is the text that is written, also where YAML makes a number or a boolean of it.

    Raises InputError, in one line with file and line, for a file that is missing or malformed.
    """
    try:
        check_regular(path, kind, MOST_BYTES)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{kind} {path} cannot be read: {one_line(error)}") from None
    try:
        loader = (_TextKeyLoader if text_keys else _Loader)(text)
        root = loader.get_single_node()
        keys = sorted(_checked_keys(root, path), key=lambda key: key.line) if root is not None else []
        content = loader.construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = _brace_hint(text, line)
        raise InputError(
            f"{path}:{line}: not valid YAML: {' '.join(str(error.problem).split())}{hint}"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: it must hold keys and values, not a {type(content).__name__}")
    return Document(path, content, tuple(keys))


def _brace_hint(text: str, line: int) -> str:
    """Return what to do about a value such as ``{model}.yaml``, which YAML takes for a mapping; "" for any other line."""
    written = text.split("\n")[line - 1 : line]
    is_template = written and re.search(r":\s+\{\w+\}[^\s,}]", written[0])
    return "; put a value that begins with a brace into quotes" if is_template else ""


def read_chain(name: str | Path, kind: str = CONFIG, *, text_keys: bool = False) -> list[Document]:
    """Return the documents of a file and of those it is based on, the last base first, without their ``_BASE_``.

    ``name`` is a path or the name of a file of the project of that ``kind`` (:func:`hicl_d2.command.shipped.find`); so is a
    ``_BASE_``, which is looked for beside its file first. Raises InputError as :func:`read_yaml` does, and for a chain that
    leads back to itself.
    """
    chain: list[Document] = []
    seen: set[Path] = set()
    path = find(name, kind)
    while True:
        if kind == CONFIG and path.suffix == ".py":
            raise InputError(
                f"config file {path} is Python, which train_net.py and the other scripts do not run; a LazyConfig attaches "
                "Hi-CL to its own model (hicl_d2.modeling.hicl.with_hicl) and is trained by its own script; the scripts read "
                "YAML (configs/...)"
            )
        seen.add(path.resolve())
        document = read_yaml(path, kind, text_keys=text_keys)
        base = document.content.pop(BASE_KEY, None)
        chain.append(document)
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise InputError(
                f"{document.place((BASE_KEY,))}: {BASE_KEY} must be the path of one {kind}, not {base!r}"
            )
        path = locate(base, kind, folders=(path.parent,)) or path.parent / expanded(base)
        if path.resolve() in seen:
            raise InputError(f"{document.path}: {BASE_KEY} leads back to {path}; remove the circle")


def leaves(content: Mapping[Any, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values of nested mappings with their paths; an empty mapping is a value."""
    for key, value in content.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def flatten(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return nested mappings as one level with dotted keys: {"SOLVER.MAX_ITER": 400}."""
    return {".".join(path): value for path, value in leaves(content)}


def _checked_keys(root: yaml.Node, file: Path) -> Iterator[Key]:
    """Yield every key of a document; InputError for what is refused.

    Goes through the nodes as the document means them, aliases written out.
    """
    waiting: list[tuple[yaml.Node, KeyPath, int]] = [(root, (), 0)]
    count = 0
    while waiting:
        node, above, level = waiting.pop()
        count += 1
        place = f"{file}:{node.start_mark.line + 1}"
        if count > MOST_NODES or level > MOST_LEVELS:
            raise InputError(
                f"{place}: the document is too large or nested too deeply, its aliases written out"
            )
        if node.tag.startswith(PYTHON_TAG):
            _check_expression(node, place)
        if isinstance(node, yaml.ScalarNode) and NO_TEXT.search(node.value):
            raise InputError(
                f"{place}: a character that no name and no path may hold (\\0 or a surrogate); remove it"
            )
        if isinstance(node, yaml.SequenceNode):
            waiting += [(child, above, level + 1) for child in node.value]
        elif isinstance(node, yaml.MappingNode):
            keys = list(_own_keys(node, above, file))
            yield from keys
            for key, (name, value) in zip(keys, node.value, strict=True):
                waiting += [(name, above, level + 1), (value, key.path, level + 1)]


def _own_keys(node: yaml.MappingNode, above: KeyPath, file: Path) -> Iterator[Key]:
    """Yield the keys of one mapping; InputError for one that is given twice."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = key.value if isinstance(key, yaml.ScalarNode) else f"[line {line}]"
        if name in first and key.tag != MERGE_TAG:
            raise InputError(
                f"{file}:{line}: the key {name} is given twice, here and in line {first[name]}; put both into one"
            )
        first[name] = line
        yield Key((*above, name), line, key.tag.removeprefix(YAML_TAG))


def _check_expression(node: yaml.Node, place: str) -> None:
    """Raise InputError for a tag that asks for code, unless it is a list that can be computed without running any."""
    refused = f"{place}: the tag !!{node.tag.removeprefix(YAML_TAG)} would run code and is refused"
    instead = "write the value itself (a list, a number, a string)"
    if node.tag != EVAL_TAG:
        raise InputError(f"{refused}; {instead}")
    try:
        list_of_range(_expression(node))
    except ValueError as error:
        raise InputError(
            f"{refused}, except for a list as [int(x * 0.1 * 512) for x in range(5, 21)]: {error}; {instead}"
        ) from None


def _expression(node: yaml.Node) -> str:
    """Return the text below the tag: the node itself, or the one element of its sequence."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if len(parts) != 1 or not isinstance(parts[0], yaml.ScalarNode):
        raise ValueError("it takes one text")
    return str(parts[0].value)
