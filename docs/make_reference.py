"""Write the reference pages from the code: every config key with its comment, and every command line.

``python docs/make_reference.py`` writes docs/reference/config.md and commands.md; with ``--check`` it changes nothing and
exits 1 if one is out of date. The page of the API needs neither: it is read from the docstrings when the site is built.
"""

import argparse
import ast
import inspect
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hicl_d2 import config  # noqa: E402
from hicl_d2.command.files import write_text  # noqa: E402
from hicl_d2.lite import defaults  # noqa: E402
from hicl_d2.modeling import keys as model_keys  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by docs/make_reference.py: run `make reference` after a change of the code. -->\n"
# What each command does, by its words after hicl, and the script of a checkout that has the same command line.
COMMANDS = {
    "": ("One command for all tools.", ""),
    "train": ("Train and evaluate one config.", "projects/HiCL/train_net.py"),
    "evaluate": ("Score weights.", ""),
    "predict": ("Overlays and label maps for images of your own.", "projects/HiCL/predict.py"),
    "check": ("Look at a data set before training on it.", "projects/HiCL/check_dataset.py"),
    "inspect": (
        "Look at the components of a model with a Hi-CL branch.",
        "projects/HiCL/inspect_components.py",
    ),
    "matrix": ("Train and compare many cells.", "benchmark/run_matrix.py"),
    "prepare": ("Turn official downloads into what the loaders read.", "-m hicl_d2.data.prepare"),
    "configs": ("The configs and matrices that come with the package.", ""),
    "export": ("A model for other runtimes.", ""),
}
TITLES = {
    "mask_former": "Mask2Former",
    "panoptic_deeplab": "Panoptic-DeepLab",
    "swin": "Swin",
    "hugging_face": "transformers",
    "efficientnet_lite": "EfficientNet-Lite",
    "timm": "timm",
}


class Key(NamedTuple):
    """A config key: its path, its default, and what the comment above it says."""

    path: str
    default: str
    comment: str


# ---------------------------------------------------------------------------------------------------------------------
# Config keys


def keys_of(function: Callable[..., None]) -> Iterator[Key]:
    """Yield the keys that a function of the form ``add_..._keys(cfg)`` adds, in its order."""
    source = inspect.getsource(function)
    comments = _comments(source)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.FunctionDef)
    prefixes = {"cfg": ""}
    said = ""
    last = 0
    for statement in body.body:
        if not isinstance(statement, ast.Assign):
            continue
        above = _above(comments, statement.lineno)
        # A comment holds for the keys that follow it line after line.
        said = above or (said if statement.lineno == last + 1 else "")
        last = statement.end_lineno or statement.lineno
        for target in statement.targets:
            if isinstance(target, ast.Attribute) and not _is_section(statement.value):
                yield Key(_path(target, prefixes), ast.unparse(statement.value), said)
            elif isinstance(target, ast.Name):
                other = next(
                    (each for each in statement.targets if isinstance(each, ast.Attribute)), statement.value
                )
                prefixes[target.id] = f"{_path(other, prefixes)}."


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _above(comments: dict[int, str], line: int) -> str:
    lines = []
    while (line := line - 1) in comments:
        lines.insert(0, comments[line])
    return " ".join(lines)


def _is_section(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and "new_allowed" not in ast.unparse(value)


def _path(node: ast.expr, prefixes: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return prefixes[node.id].rstrip(".")
    assert isinstance(node, ast.Attribute)
    above = _path(node.value, prefixes)
    return f"{above}.{node.attr}" if above else node.attr


def detectron2_keys() -> Iterator[Key]:
    """Yield Detectron2's keys that semantic segmentation reads, with the comments of hicl_d2/lite/defaults.py."""
    source = inspect.getsource(defaults)
    comments = _comments(source)
    tree = ast.parse(source)
    assigned = {
        node.target.id: node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    yield from _dict_keys(assigned["SEGMENTATION"], "", comments)


def _dict_keys(node: ast.expr | None, prefix: str, comments: dict[int, str]) -> Iterator[Key]:
    assert isinstance(node, ast.Dict)
    said, last = "", 0
    for key, value in zip(node.keys, node.values, strict=True):
        assert isinstance(key, ast.Constant)
        above = _above(comments, key.lineno)
        said = above or (said if key.lineno == last + 1 else "")
        last = value.end_lineno or value.lineno
        if isinstance(value, ast.Dict):
            yield from _dict_keys(value, f"{prefix}{key.value}.", comments)
        else:
            yield Key(f"{prefix}{key.value}", ast.unparse(value), said)


def config_page() -> str:
    """Return the page of the config keys."""
    own = [
        ("Extensions", config._add_extension_keys),
        ("Training", config._add_training_keys),
        ("Tracking", config._add_tracking_keys),
        ("Data", config._add_data_keys),
        ("Evaluation", config._add_evaluation_keys),
        ("The branch: MODEL.HICL", config._add_branch_keys),
    ]
    models = [
        (TITLES[name.removeprefix("add_").removesuffix("_keys")], function)
        for name, function in vars(model_keys).items()
        if name.startswith("add_") and name not in ("add_model_keys",)
    ]
    parts = [
        GENERATED,
        "# Config keys\n",
        "A config file holds a tree of keys; `SOLVER.MAX_ITER` is the key MAX_ITER in the section SOLVER. On the command line "
        "a key and its value are two words: `SOLVER.MAX_ITER 1000`. `train_net.py --print-config` shows the value of all.\n",
        "## Keys of this project\n",
    ]
    for title, function in own:
        parts += [f"### {title}\n", _table(keys_of(function))]
    parts.append("## Keys of models\n")
    for title, function in models:
        parts += [f"### {title}\n", _table(keys_of(function))]
    parts += [
        "## Detectron2's keys that semantic segmentation reads\n",
        "The others are explained in [its config reference](https://detectron2.readthedocs.io/en/latest/modules/config.html).\n",
        _table(detectron2_keys()),
    ]
    return "\n".join(parts)


def _table(keys: Iterator[Key]) -> str:
    lines = ["| key | default | what it is |", "|---|---|---|"]
    before = ""
    for key in keys:
        comment = key.comment.replace("|", "\\|")
        shown = "″" if comment and comment == before else comment
        before = comment
        default = "{}" if key.default.startswith("CfgNode") else key.default
        lines.append(f"| `{key.path}` | `{default}` | {shown} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Command lines


def commands_page() -> str:
    """Return the page of the command lines: what each prints for --help."""
    parts = [
        GENERATED,
        "# Command lines\n",
        "All commands end with status 0 if all went well, 2 after one line on standard error that says what is wrong with what "
        "they were given, and 130 after Ctrl-C. `KEY VALUE` pairs at the end override the [config](config.md).\n",
    ]
    for word, (what, script) in COMMANDS.items():
        printed = subprocess.run(
            [sys.executable, "-m", "hicl_d2", *word.split(), "--help"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        # The number of processes that a default names is this machine's.
        printed = re.sub(r"processes \[\d+\]", "processes [all cores]", printed)
        same = f" In a checkout `python {script}` is the same." if script else ""
        parts += [
            f"## `{f'hicl {word}'.strip()}`\n",
            f"{what}{same}\n",
            f"```text\n{printed.rstrip()}\n```\n",
        ]
    return "\n".join(parts)


def main() -> int:
    """Write the pages, or with --check say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    check = parser.parse_args().check
    stale = False
    for name, text in (("config.md", config_page()), ("commands.md", commands_page())):
        path = REFERENCE / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.stderr.write(f"docs/reference/{name} is out of date; run: make reference\n")
            stale = True
        else:
            write_text(path, text)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
