"""The page: sections of HTML, with plots and pictures inside."""

import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import atomic_path, write_text
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.reference import published
from hicl_d2.harness.report import plots
from hicl_d2.harness.report.pictures import data_url, largest
from hicl_d2.harness.report.style import CSS
from hicl_d2.harness.tables import (
    SHORT_NOTE,
    collect,
    comparison,
    summarise,
    write_results,
    write_tables,
)
from hicl_d2.harness.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"
PLOT_FOLDER = "plots"


def write_report(workspace: Workspace) -> Path:
    """Write ``report.html``, the tables it shows, and each plot as PNG and SVG; return the page's path."""
    rows = collect(workspace.matrix, workspace.states)
    write_results(rows, workspace.tables)
    write_tables(rows, workspace.matrix, workspace.tables)
    (workspace.tables / PLOT_FOLDER).mkdir(exist_ok=True)
    sections = list(_sections(workspace, rows))
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in sections)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{content}</section>'
        for title, content in sections
    )
    name = escape(workspace.matrix.name)
    path = workspace.tables / REPORT_FILE
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><header><h1>{name}</h1>{_summary(workspace)}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n",
    )
    return path


def _summary(workspace: Workspace) -> str:
    counts = Counter(workspace.states[cell.slug].name for cell in workspace.matrix.cells)
    chips = "".join(
        f'<span class="chip {name}">{count} {name}</span>' for name, count in counts.most_common()
    )
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    mark = f"<p><b>{escape(SHORT_NOTE)}</b></p>" if workspace.matrix.is_short else ""
    return (
        f"{mark}<p>{counted(len(workspace.matrix.cells), 'cell')} {chips} <small>written {when}</small></p>"
    )


def _sections(workspace: Workspace, rows: "pd.DataFrame") -> Iterator[tuple[str, str]]:
    from matplotlib import rc_context

    matrix = workspace.matrix
    summary = summarise(rows, matrix)
    yield "Results", _results(workspace, rows)
    places = list(dict.fromkeys(cell.group[:2] for cell in matrix.cells))
    for title, note, draw in (
        (
            "Differences",
            "Filled: with its 95 % interval; coloured where that leaves out zero. Hollow: fewer than six pairs of seeds, "
            "too few for an interval.",
            "differences",
        ),
        (
            "Classes",
            "Lines are 95 % bootstrap intervals over the seeds; grey without a line: fewer than six pairs, too few for one.",
            "class_differences",
        ),
        (
            "Learning curves",
            "Thin lines are seeds, thick ones their mean, bands one standard deviation.",
            "curves",
        ),
        ("Cost and accuracy", "Bars are one standard deviation over the seeds.", "cost"),
    ):
        drawn = ""
        for place in places:
            with rc_context(plots.STYLE):  # while it is drawn and when it is saved
                figure = _draw(draw, workspace, rows, summary, place)
                if figure is not None:
                    drawn += _figure(figure, draw, title, place, workspace.tables, with_title=len(places) > 1)
        if drawn:
            yield title, f"<p>{note}</p>{drawn}"
    shown = "".join(_pictures(workspace, place) for place in places)
    if shown:
        first, second = matrix.compare or ("", "")
        yield (
            "Pictures",
            f"<p>Where {escape(second)} gains and loses most against {escape(first)}.</p>{shown}",
        )
    theirs = published(matrix)
    if len(theirs):
        note = "<p>Figures of others, under their own protocols; nothing here is computed from them.</p>"
        yield "Published elsewhere", note + _table(theirs, "published")
    yield "Provenance", _provenance(workspace)


def _draw(
    name: str, workspace: Workspace, rows: "pd.DataFrame", summary: "pd.DataFrame", place: plots.Place
) -> "Figure | None":
    if name == "differences":
        return plots.differences(summary, workspace.matrix, place)
    if name == "class_differences":
        return plots.class_differences(rows, workspace.matrix, place)
    if name == "curves":
        return plots.learning_curves(workspace, place)
    return plots.cost(summary, workspace.matrix, place)


def _results(workspace: Workspace, rows: "pd.DataFrame") -> str:
    note = (
        "<p>Mean ± standard deviation (number of seeds) of the last iteration; the difference is to the baseline over "
        "the seeds that both have, in brackets its 95 % bootstrap interval, from six pairs on (with fewer it would cover far "
        "less than 95 %, and neither interval nor colour is shown); p from exact sign flips, shown from five pairs on, "
        "in parentheses after Holm over the rows that have two pairs or more with the same baseline.</p>"
    )
    return note + _table(comparison(rows, workspace.matrix), "results")


def _table(frame: "pd.DataFrame", name: str) -> str:
    html = frame.to_html(index=False, border=0, table_id=name, na_rep="")
    html = re.sub(r"<td>((?:missing|failed|stale|damaged)[^<]*)</td>", r'<td class="absent">\1</td>', html)
    html = re.sub(r"<td>(\+[^<]*\[[^<]*)</td>", r'<td class="gain">\1</td>', html)
    html = re.sub(r"<td>(-\d[^<]*\[[^<]*)</td>", r'<td class="loss">\1</td>', html)
    return f'<div class="scroll">{html}</div>'


def _figure(
    figure: "Figure", kind: str, title: str, place: plots.Place, output: Path, with_title: bool
) -> str:
    """Save a plot as PNG and SVG and return it as a part of the page."""
    name = re.sub(r"[^\w.-]+", "_", "-".join([kind, *filter(None, place)]))
    with atomic_path(output / PLOT_FOLDER / f"{name}.png", durable=False) as path:
        figure.savefig(path, dpi=160)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    write_text(output / PLOT_FOLDER / f"{name}.svg", stream.getvalue())
    svg = stream.getvalue()[stream.getvalue().index("<svg") :]
    # Ids are unique within a plot, not within a page.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    where = escape(" · ".join(filter(None, place)))
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}, {where}"', 1)
    caption = f"<figcaption>{where}</figcaption>" if with_title else ""
    return f'<figure class="plot">{caption}{svg}</figure>'


def _pictures(workspace: Workspace, place: plots.Place) -> str:
    first, second = workspace.matrix.compare or ("", "")
    parts = []
    for pair in largest(workspace, place):
        sign = "gain" if pair.gain > 0 else "loss"
        head = (
            f'<figcaption><b class="{sign}">{pair.gain:+.1f}</b> {escape(pair.image)}, seed {pair.seed}: '
            f"{escape(first)} {pair.first_score:.1f}, {escape(second)} {pair.second_score:.1f}</figcaption>"
        )
        images = "".join(
            _image(name, pair.image, path) for name, path in ((first, pair.first), (second, pair.second))
        )
        parts.append(f'<figure class="pair">{head}{images}</figure>')
    return "".join(parts)


def _image(name: str, image: str, path: Path) -> str:
    url = data_url(path)
    alt = escape(f"{image}: image, truth, prediction of {name}")
    shown = f'<img loading="lazy" alt="{alt}" src="{url}">' if url else "(cannot be read)"
    return f"<div><span>{escape(name)}</span>{shown}</div>"


def _provenance(workspace: Workspace) -> str:
    rows = "".join(_provenance_row(cell, workspace) for cell in workspace.matrix.cells)
    headings = ("cell", "state", "identity", "commit", "host", "device", "runtime", "started", "attempts")
    head = "".join(f"<th>{name}</th>" for name in headings)
    note = (
        "<p>Identity: digits of its whole config, weights, data and IMPORTS. Commit of the project "
        "and host, when the cell was first started; device and runtime: as its result has them; started: when the "
        "attempt began that ran last (UTC); attempts: how often it was started. A cell opens to show its command.</p>"
    )
    return f'{note}<div class="scroll"><table id="provenance"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _provenance_row(cell: Cell, workspace: Workspace) -> str:
    folder = cell.folder(workspace.output)
    state = workspace.states[cell.slug]
    manifest = _manifest(folder)
    attempts = files.attempts(folder)
    result = state.result or {}
    git = manifest.get("git") or {}
    commit = f"{(git.get('commit') or '')[:10]}{' + changes' if git.get('dirty') else ''}"
    what = state.name if state.failure is None else f"{state.name}: {state.failure.kind}"
    command = shlex.join(manifest.get("command", []))
    details = f"<details><summary>{escape(cell.name)}</summary><code>{escape(command)}</code></details>"
    cells = [
        f'<span class="chip {state.name}">{escape(what)}</span>',
        f"<code>{cell.hash}</code>",
        escape(commit),
        escape((manifest.get("hardware") or {}).get("host", "")),
        escape(str(result.get("device", ""))),
        escape(str((result.get("versions") or {}).get("runtime", ""))),
        escape(_started(attempts)),
        str(len(attempts)),
    ]
    return f"<tr><td>{details}</td>{''.join(f'<td>{content}</td>' for content in cells)}</tr>"


def _started(attempts: list[dict[str, Any]]) -> str:
    """Return when the last attempt began that ran; "" where none did."""
    ran = [attempt for attempt in attempts if attempt["state"] != files.QUEUED]
    return str(ran[-1].get("started", "")) if ran else ""


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a cell, empty if it has none that can be read: the others are shown all the same."""
    try:
        return files.read_manifest(folder) or {}
    except InputError:
        return {}


def _anchor(title: str) -> str:
    return f"section-{title.lower().replace(' ', '-')}"
