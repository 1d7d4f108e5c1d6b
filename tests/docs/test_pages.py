"""Everything that the pages and the README show runs as it stands, and prints what is shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
GENERATED = {"config.md", "commands.md"}
RUN = [page for page in PAGES if re.search(r"^ *```(sh|python|yaml)", page.read_text(), re.MULTILINE)]


@pytest.mark.parametrize(
    "page", [each for each in RUN if each.name not in GENERATED], ids=lambda page: page.stem
)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.pages", str(page), str(tmp_path / "page")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is_and_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
    opening = [fence.split(" ")[0] for fence in fences[::2]]
    assert set(opening) <= {"python", "sh", "yaml", "text"}, opening
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", outside):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page", [each for each in PAGES if each.name not in GENERATED], ids=lambda page: page.stem
)
def test_a_command_is_always_written_alike(page: Path) -> None:
    """So that one substitution gives all of them another form."""
    for block in re.findall(r"^```(?:sh|text)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for script in re.findall(r"[\w./ ]*\b\w+\.py\b", block):
            name = script.split("/")[-1].split(" ")[-1]
            whole = [
                f"python {found.relative_to(ROOT)}"
                for found in (*ROOT.glob("projects/HiCL/*.py"), *ROOT.glob("benchmark/*.py"))
            ]
            for form in whole:
                assert not form.endswith(f"/{name}") or script.endswith(form), script


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        assert str(page.relative_to(ROOT / "docs")) in navigation, page
