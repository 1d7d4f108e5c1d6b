"""Names are one path component of plain characters; nothing outside the matrix's own folders is written or removed."""

import os
import re

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.harness import clean
from hicl_d2.harness import folder as files
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.workspace import open_workspace

# What nothing may be called.
BAD_ANYWHERE = [
    "a\nb",
    "a\n#SBATCH --wrap=x",
    "../up",
    "/absolute",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "-dash",
    "a\tb",
    "\x1b[31mred",
    "a\u202eb",
    "a\u200bb",
    "x" * 101,
    " ",
    "",
]
# What becomes a path component as it is may not be called.
BAD = [
    *BAD_ANYWHERE,
    "=cmd()",
    "+1",
    "@x",
    "end.",
    "a b",
    "a|b",
    "<b>",
    "$(id)",
    "`id`",
    "'a'",
    "~",
    "a;b",
    "$x^2$",
    "a,b",
    "m\u0435thod",  # a Cyrillic letter
    "\uff0e\uff0e",
    "e\u0301",
]
PLACES = ["name", "datasets", "models", "include"]
# Methods and ablations are shown, and a part of paths in plain characters only.
BAD_SHOWN = [*BAD_ANYWHERE, " a", "a "]
SHOWN = [
    "a|b",
    "~",
    "t=<1>",
    "=cmd()",
    "$(id)",
    "`id`",
    "a;b",
    "$x^2$",
    "a, b",
    "größe",
    "'a'",
    "{x}",
    "&amp;",
    "%s",
    "größé",
]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_of_other_characters_is_refused_in_one_line(bench, name, place):
    changes = {
        "name": {"name": name},
        "include": {"include": [{"dataset": name, "model": "small", "method": "ours"}]},
    }.get(place, {place: {name: None}})
    with pytest.raises(InputError) as error:
        read_matrix(bench.matrix(**changes))
    assert "must be 1 to 100 letters" in str(error.value) or (place, name) == ("name", "")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", BAD_SHOWN)
@pytest.mark.parametrize("place", ["methods", "ablations", "include"])
def test_a_shown_name_is_one_line_without_slashes(bench, name, place):
    plain = {"config": str(bench.folder / "plain.yaml")}
    entry = {"dataset": "cityscapes", "model": "small", "method": name}
    changes = {"include": [entry]} if place == "include" else {place: {name: plain}}
    with pytest.raises(InputError, match="must be 1 to 100 characters of one line") as error:
        read_matrix(bench.matrix(**changes))
    assert str(error.value).isprintable()


def test_shown_names_stay_apart_in_paths_of_plain_characters(bench):
    plain = str(bench.folder / "plain.yaml")
    methods = {name: {"config": plain, "overrides": {"X": number}} for number, name in enumerate(SHOWN)}
    cells = read_matrix(bench.matrix(methods=methods, seeds=[1])).cells
    assert [cell.method for cell in cells] == [
        name for name in SHOWN for _ in range(len(cells) // len(SHOWN))
    ]
    slugs = {cell.slug for cell in cells}
    assert len(slugs) == len(cells)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", slug) for slug in slugs)


@pytest.mark.parametrize("name", ["a", "0", "hi-cl", "t=0.5", "v3+", "A_b.C-9", "x" * 100, "1e3", "off"])
def test_plain_names_are_taken_as_they_are(bench, name):
    plain = {"config": str(bench.folder / "plain.yaml")}
    cell = read_matrix(bench.matrix(name=name, datasets=[name], methods={name: plain})).cells[0]
    assert (cell.dataset, cell.method) == (name, name)
    assert cell.slug.startswith(re.sub(r"[^\w.]", "_", name)[:90])
    assert len(os.fsencode(cell.slug)) <= 255
    assert cell.folder(bench.output).parent == bench.output / "cells"


@pytest.mark.parametrize("data", ["/", "../else", "a/../../b", "", "."])
def test_data_lie_below_the_data_root(bench, data):
    with pytest.raises(InputError, match="must be a file or folder below the data root"):
        read_matrix(bench.matrix(datasets={"parts": {"data": [data]}}))


@pytest.mark.parametrize(
    "template",
    ["{dataset.__class__}", "{dataset[0]}", "{dataset!r}", "{dataset:>999999999}", "{}", "{0}", "{{x}}"],
)
def test_a_template_holds_words_and_nothing_else(bench, template):
    with pytest.raises(InputError, match=r"may hold .* and no other braces"):
        read_matrix(bench.matrix(methods={"a": {"config": template}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [2**31]},
        {"seeds": [10**20]},
        {"resources": {"cpus": 10**20}},
        {"resources": {"memory_gb": 1e999}},
        {"overrides": {"X": 10**40}},
        {"overrides": {"X": [1, 10**40]}},
        {"overrides": {"X": "a\0b"}},
        {"overrides": {"X\0": 1}},
        {"baseline": {"method": ["ours"]}},
        {"report": {"compare": [["ours"], "baseline"]}},
    ],
)
def test_numbers_and_text_beyond_all_measure_are_one_line(bench, changes):
    bench.matrix(**changes)
    done = bench.run(verb="plan")
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_twenty_thousand_seeds_are_read_without_comparing_each_with_each(bench):
    class Counted(int):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return int(self) == int(other)

        __hash__ = int.__hash__

    from hicl_d2.harness import matrix

    seeds = [Counted(number) for number in range(20_000)]
    with pytest.raises(InputError):  # they are no plain int; the check before that is what is counted
        matrix._seeds(seeds, "x")
    names = list(range(20_000))
    assert matrix._seeds(names, "x") == names
    assert Counted.compared < 100_000


# ----------------------------------------------------------------------------------------------------------
# clean


@pytest.fixture
def outside(tmp_path_factory):
    """Return a stranger's folder with files that look like ours."""
    place = tmp_path_factory.mktemp("outside")
    for name in ("model_0000001.pth", "notes.txt", f".hicl_d2-{'a' * 16}-x.tmp"):
        (place / name).write_text("mine")
    return place


def contents(place):
    return sorted(
        (str(path.relative_to(place)), path.read_text()) for path in place.rglob("*") if path.is_file()
    )


def test_clean_refuses_a_folder_that_run_did_not_make(bench, outside):
    bench.matrix()
    before = contents(outside)
    for options in ((), ("--orphans",), ("--orphans", "--yes")):
        done = bench.run(*options, "--output", str(outside), verb="clean")
        assert done.returncode == 2
        assert "has no matrix.json" in done.stderr
    assert contents(outside) == before
    (outside / "matrix.json").write_text('{"matrix": "another", "schema": 1}')
    assert (
        "holds the matrix another"
        in bench.run("--orphans", "--yes", "--output", str(outside), verb="clean").stderr
    )


def test_clean_removes_nothing_behind_links_and_nothing_without_a_manifest(bench, outside):
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    cells = bench.output / "cells"
    real = bench.folders()[0]
    before = contents(outside)
    (cells / "linked").symlink_to(outside)
    (cells / ".dot").mkdir()
    (cells / ".dot" / "file").write_text("x")
    (cells / "strangers").mkdir()
    (cells / "strangers" / "file").write_text("x")
    (cells / "edited-0123456789ab").mkdir()
    (cells / "edited-0123456789ab" / "cell.json").write_text('{"hash": "0123456789ab", "matrix": "test"}')
    (real / "model_0000001.pth").symlink_to(outside / "model_0000001.pth")
    (real / "model_0000002.pth").mkdir()
    (real / "model_0000002.pth" / "file").write_text("x")
    (real / "mine.pth").write_text("x")
    (real / "below").symlink_to(outside)
    (bench.output / "probes").symlink_to(outside)
    done = bench.run("--orphans", "--yes", verb="clean")
    assert done.returncode == 0, done.stderr
    assert contents(outside) == before
    for kept in ("linked", ".dot/file", "strangers/file", "edited-0123456789ab/cell.json"):
        assert (cells / kept).exists()
    assert (real / "mine.pth").exists()
    assert (real / "model_0000002.pth" / "file").exists()
    assert "removed" not in done.stderr.replace("to remove:", "")


def test_a_cell_folder_that_is_a_link_is_left_alone(bench, outside):
    bench.matrix(seeds=[1])
    bench.run()
    folder = bench.folders()[0]
    target = outside / "moved"
    folder.rename(target)
    folder.symlink_to(target)
    (target / "model_0000001.pth").write_text("x")
    assert bench.run("--yes", verb="clean").returncode == 0
    assert (target / "model_0000001.pth").exists()
    bench.matrix(seeds=[2])
    assert bench.run("--orphans", "--yes", verb="clean").returncode == 0
    assert (target / "result.json").exists()


def test_clean_takes_probes_of_ours_and_leaves_what_others_put_there(bench):
    bench.matrix(seeds=[1])
    bench.run()
    bench.matrix(
        seeds=[3], methods={"new": {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": 1}}}
    )
    assert bench.run("--probe", verb="plan").returncode == 0
    (bench.output / "probes" / "notes.txt").write_text("mine")
    assert bench.run("--yes", verb="clean").returncode == 0
    assert [path.name for path in (bench.output / "probes").iterdir() if path.name != ".lock"] == [
        "notes.txt"
    ]
    (bench.output / "probes" / "notes.txt").unlink()
    assert bench.run("--probe", verb="plan").returncode == 0
    assert bench.run("--yes", verb="clean").returncode == 0
    assert not (bench.output / "probes").exists()


def test_an_orphan_that_still_trains_is_kept(bench):
    cell = read_matrix(bench.matrix(seeds=[1])).cells[0]
    files.write_manifest(cell, "test", bench.output, [])
    (bench.output / "matrix.json").write_text('{"matrix": "test", "schema": 1}')
    bench.matrix(seeds=[2])
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    held = files.lock(cell.folder(bench.output))
    assert list(clean.find(workspace, True)) == []
    held.close()
    assert list(clean.find(workspace, True)) == [cell.folder(bench.output)]


@pytest.mark.parametrize("name", ["stdout.txt", "stderr.txt", ".cell.lock", "heartbeat"])
def test_links_in_the_place_of_a_cells_files_are_not_written_through(bench, outside, name):
    cells = read_matrix(bench.matrix(seeds=[1])).cells
    target = outside / "notes.txt"
    folder = cells[0].folder(bench.output)
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target)
    before = (target.read_text(), target.stat().st_mtime_ns)
    done = bench.run()
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert (target.read_text(), target.stat().st_mtime_ns) == before
