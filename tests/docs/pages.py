"""Run what a page shows, in the order of the page: ``python -m tests.docs.pages PAGE FOLDER``.

Code blocks are read by Sybil. What a block is, its first line says:

- ``sh`` is run by bash and ``python`` in one process, all in FOLDER, which holds the examples of the checkout and nothing else;
- with a title, it is a file of that name (``yaml title="leaves.yaml"``); a command whose title is ``exit status 2`` ends so;
- ``text title="output"`` is what the block before it printed.

Trainings are cut to a few iterations (``SHRINK``), and what they print is then not compared. ``--full`` runs them as they
stand, and ``--write`` puts what was printed into the page.
"""

import argparse
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# What a page may use of the checkout, and says so; all else is in the package.
LENT = ("examples",)
INFO = re.compile(r'(?P<language>python|sh|yaml|text)(?: title="(?P<title>[^"\n]*)")?[ \t]*$\n', re.MULTILINE)
OUTPUT = "output"
STATUS = re.compile(r"exit status (\d+)")
# What differs from run to run in what a command prints.
VOLATILE = re.compile(r"\d+(\.\d+)? ?(s|ms|minutes?|seconds?|GB free)\b|[0-9a-f]{12,}")
PROGRESS = re.compile(r"ETA \d|\d gone\)|^checking configs \d")

# What is added to a command so that it takes seconds. Of keys that the command gives itself, the number of iterations alone.
SHRINK = """#!{python}
import os, sys
words = sys.argv[1:]
front = {front}
first = words[0] if words else ""
stays = {{"--check", "--print-config", "--list-features", "--help"}}
tiny = {{"SOLVER.MAX_ITER": "4", "SOLVER.IMS_PER_BATCH": "2", "SOLVER.CHECKPOINT_PERIOD": "2", "TEST.PICTURES": "1"}}
more = []
if front and first == "train" and not stays & set(words):
    more = [word for key, value in tiny.items() if key not in words or key == "SOLVER.MAX_ITER" for word in (key, value)]
elif front and first == "matrix" and not {{"plan", "--help"}} & set(words):
    more = [*(["--shorten"] if "--shorten" not in words else []), *(["--only", "*/seed 1"] if "run" in words else [])]
elif not front and os.path.dirname(first) == "examples":
    more = ["--steps", "10"]
if more:
    open(os.environ["PAGE_SHRUNK"], "w").close()
os.execv({python!r}, [{python!r}, *front, *words, *more])
"""
# Where the processes of a page's run meet: on another port, as the page may run twice at a time on a machine.
MEETING = re.compile(r"(?<=tcp://127\.0\.0\.1:)\d+")
# The commands that a page gives, and what stands in front of their words.
PROGRAMS: dict[str, list[str]] = {"python": [], "hicl": ["-m", "hicl_d2"]}


class Page:
    """A page being run: where, with what environment, and what its last block printed."""

    def __init__(self, path: Path, folder: Path, full: bool) -> None:
        self.path, self.folder, self.full = path, folder, full
        self.text = path.read_text()
        self.printed: str | None = None
        self.outputs: list[tuple[Region, str]] = []
        self.marker = folder / ".shrunk"
        self.environment = self._prepare()

    def _prepare(self) -> dict[str, str]:
        bin_folder = self.folder / ".bin"
        bin_folder.mkdir(parents=True)
        for name in LENT:
            (self.folder / name).symlink_to(ROOT / name)
        scripts = {
            name: f'#!/bin/sh\nexec {sys.executable} {" ".join(front)} "$@"\n'
            if self.full
            else SHRINK.format(python=sys.executable, front=front)
            for name, front in PROGRAMS.items()
        }
        for name, text in scripts.items():
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        path = os.environ["PATH"]
        return {
            **{key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"},
            "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{path}",
            "PAGE_SHRUNK": str(self.marker),
            "PYTHONPATH": f"{self.folder}:{ROOT}",
            "COLUMNS": "100",
        }

    def run_shell(self, source: str, status: int) -> None:
        """Run a block of commands, which is to end in ``status``; what it leaves running is killed then."""
        self.marker.unlink(missing_ok=True)
        command = ["bash", "-e", "-o", "pipefail", "-c", MEETING.sub(str(free_port()), source)]
        with tempfile.TemporaryFile("w+") as printed:
            shell = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                found = shell.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
            printed.seek(0)
            self.printed = printed.read()
        if found != status:
            raise AssertionError(f"exit status {found}, not {status}:\n{source}\n{self.printed}")

    def run_python(self, example: Example) -> None:
        """Run a block in the page's process, with line numbers of the page."""
        self.marker.unlink(missing_ok=True)
        source = "\n" * example.line + str(example.parsed)
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(source, str(self.path), "exec"), example.namespace)
        self.printed = stream.getvalue()

    def compare(self, example: Example) -> None:
        """Compare what the last block printed with the output that the page shows."""
        if self.printed is None:
            raise AssertionError("an output without a block before it")
        self.outputs.append((example.region, self.printed))
        if self.marker.exists():
            return
        shown, seen = (VOLATILE.sub("#", _tidy(text)) for text in (str(example.parsed), self.printed))
        if shown != seen and not WRITES:
            raise AssertionError(f"the page shows\n{shown}\nbut what is printed is\n{seen}")

    def evaluate(self, example: Example) -> None:
        """Do what a block is there for."""
        language, title = example.region.lexemes["language"], example.region.lexemes["title"]
        status = STATUS.fullmatch(title or "")
        if language == "text":
            if title == OUTPUT:
                self.compare(example)
        elif title and not status:
            file = self.folder / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(example.parsed))
        elif language == "sh":
            self.run_shell(str(example.parsed), int(status[1]) if status else 0)
        elif language == "python":
            self.run_python(example)
        else:
            raise AssertionError("a YAML block needs the title that its file has")


WRITES = False


def run(page: Page) -> None:
    """Run the page; raise what a block raises, with its line."""

    def parse(document: Document) -> list[Region]:
        regions = list(RawFencedCodeBlockLexer(INFO)(document))
        for region in regions:
            region.parsed, region.evaluator = region.lexemes["source"], page.evaluate
        return regions

    document = Sybil(parsers=[parse, SkipParser()]).parse(page.path)
    os.chdir(page.folder)
    os.environ.update(page.environment)
    sys.path.insert(0, str(page.folder))
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            page.printed = None
        except Exception as error:
            error.add_note(f"{page.path}, line {example.line}")
            raise


def write(page: Page) -> None:
    """Put what was printed into the page."""
    text = page.path.read_text()
    if text != page.text:
        raise SystemExit(f"{page.path} was changed meanwhile; nothing is written")
    for region, printed in reversed(page.outputs):
        text = f'{text[: region.start]}```text title="{OUTPUT}"\n{_tidy(printed)}\n```{text[region.end :]}'
    page.path.write_text(text)


def _tidy(text: str) -> str:
    """Return what is left on a terminal in the end: no progress."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if not PROGRESS.search(line)]
    return "\n".join(lines).strip("\n")


def main() -> None:
    global WRITES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path, help="a new folder to work in")
    parser.add_argument("--full", action="store_true", help="train as the page says")
    parser.add_argument("--write", action="store_true", help="put what was printed into the page")
    args = parser.parse_args()
    WRITES = args.write
    page = Page(args.page.resolve(), args.folder.resolve(), args.full)
    try:
        run(page)
    finally:
        if args.write:
            write(page)


if __name__ == "__main__":
    main()
