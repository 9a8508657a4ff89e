"""The leaderboard as one static HTML page: no server, no request, readable without script.  No torch.

Links are relative to where the page is written.  Everything that comes from a record is escaped.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from common import leaderboard_svg as svg
from common.leaderboard import Board, Entry, Group, Shape
from common.leaderboard_differences import NOTES as OF_DIFFERENCES
from common.leaderboard_differences import Changes, grid
from common.leaderboard_plot import colours, is_crowded
from common.leaderboard_style import SCRIPT, style
from common.leaderboard_table import HEADER, NOTES, absent, alone, cells, measured_on
from common.records import EvalRecord, RunRecord

NUMBERS = frozenset((0, *range(4, 7), *range(8, 12)))          # columns of HEADER that sort as numbers
ACCURACIES = (4, 5)                                            # those with an interval


def page(board: Board, title: str, where: Path, files: Sequence[Path] = (),
         changes: Mapping[Shape, Changes] | None = None) -> str:
    """The page's text.  where: the file it will be; files: tables and figures of the same numbers, linked to."""
    sections = [section(group, board, f"g{number}", where, (changes or {}).get(group.shape))
                for number, group in enumerate(board.groups, start=1)]
    jumps = "".join(f'<li><a href="#g{number}">{escape(group.shape.title)}</a> ({len(group.entries)})</li>'
                    for number, group in enumerate(board.groups, start=1))
    other = ", ".join(link(path, path.name, where) for path in files)
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing is fetched, and a browser that reads this refuses to.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
        'script-src \'unsafe-inline\'; img-src \'self\' data:">',
        f"<title>{escape(title)}</title>", f"<style>{style(list(colours(board).values()))}</style>", "</head>",
        "<body>", '<a class="skip" href="#main">Skip to the tables</a>', "<header>", f"<h1>{escape(title)}</h1>",
        f"<p>AutoAttack, standard version, {escape(str(board.threat))}. Made from the records beside this page; every "
        "point and row leads to its record, its curves and the command that made it.</p>",
        f'<nav aria-label="Groups"><ul>{jumps}</ul></nav>', "</header>", '<main id="main">',
        '<section aria-labelledby="read"><h2 id="read">How to read this</h2><ul>',
        *(f"<li>{escape(note)}</li>" for note in (*NOTES, *(OF_DIFFERENCES if changes else ()))),
        f"</ul><p>The same numbers: {other}.</p></section>",
        *sections, left(board), "</main>", f"<script>{SCRIPT}</script>", "</body>", "</html>", ""])


def link(path: Path, text: str, where: Path) -> str:
    """A relative link from the page to a file."""
    target = Path(os.path.relpath(path, Path(where).parent)).as_posix()
    return f'<a href="{escape(quote(target))}">{escape(text)}</a>'


def with_code(text: str) -> str:
    """Escaped; what stands between backticks is marked as code."""
    return "".join(f"<code>{escape(part)}</code>" if number % 2 else escape(part)
                   for number, part in enumerate(text.split("`")))


def section(group: Group, board: Board, name: str, where: Path, changes: Changes | None) -> str:
    """One group: scatter (and lines where it is crowded), table, what was compared, then each entry."""
    papers = list(colours(board))
    warnings = "".join(f'<p class="warning">{with_code(text)}</p>' for text in alone(group))
    others = "".join(f"<p>{with_code(text)}</p>" for text in absent(group))
    legend = "".join(f'<li><span class="key p{papers.index(paper)}"></span>{escape(paper)}</li>'
                     for paper in dict.fromkeys(entry.paper for entry in group.entries))
    many = ['<figure><div class="scroll" tabindex="0" role="region" aria-label="Both accuracies of each method">',
            svg.lines(group, board, f"{name}-lines"), "</div></figure>"] if is_crowded(group) else []
    return "\n".join([
        f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{escape(group.shape.title)}</h2>',
        f"<p>{escape(measured_on(group, board))}</p>{warnings}", "<figure>", svg.scatter(group, board, f"{name}-plot"),
        f'<ul class="keys">{legend}<li><span class="key line"></span>Pareto front</li></ul>',
        "<figcaption>Numbers are those of the table. Bars: Wilson's 95% interval; small dots: seeds.</figcaption>",
        "</figure>", *many, table(group, name, papers), others,
        *([differences(changes, group, f"{name}-differences")] if changes else []),
        *(article(entry, number, f"{name}-{number}", where) for number, entry in enumerate(group.entries, start=1)),
        "</section>"])


def table(group: Group, name: str, papers: Sequence[str]) -> str:
    """The group's rows; with script the headers sort them."""
    head = "".join(f'<th scope="col"{" data-number" if number in NUMBERS else ""}>{escape(text)}</th>'
                   for number, text in enumerate(HEADER))
    rows = []
    for number, entry in enumerate(group.entries, start=1):
        shown = cells(entry, group, number)
        label = f'<a href="#{escape(entry.key)}">{escape(shown[1])}</a>'
        # An interval goes on a line of its own before it makes the table wider than the page.
        told = ["".join(f'<span class="whole">{escape(part)}</span> ' for part in text.replace(" [", "\n[").split("\n"))
                if place in ACCURACIES else escape(text) for place, text in enumerate(shown)]
        rows.append(f'<tr><td><span class="badge p{papers.index(entry.paper)}"><b>{shown[0]}</b></span></td>'
                    f'<th scope="row">{label}</th>' + "".join(f"<td>{text}</td>" for text in told[2:])
                    + "</tr>")
    return (f'<div class="scroll" role="region" aria-labelledby="{name}-caption" tabindex="0"><table class="methods">'
            f'<caption id="{name}-caption">{escape(group.shape.title)}</caption><thead><tr>{head}</tr></thead><tbody>'
            + "\n".join(rows) + "</tbody></table></div>")


def differences(changes: Changes, group: Group, name: str) -> str:
    """What was compared image by image; a pair leads to its first method's entry."""
    shown = grid(changes, f"Differences: {group.shape.title}")
    head = "".join(f'<th scope="col"{" data-number" if number > 2 else ""}>{escape(text)}</th>'
                   for number, text in enumerate(shown.header))
    rows = [f'<tr><th scope="row"><a href="#{escape(row.first.key)}">{escape(texts[0])}</a></th>'
            + "".join(f"<td>{escape(text)}</td>" for text in texts[1:]) + "</tr>"
            for row, texts in zip(changes.rows, shown.rows, strict=True)]
    return (f'<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0"><table class="differences">'
            f'<caption id="{name}">{escape(shown.title)}</caption><thead><tr>{head}</tr></thead><tbody>'
            + "\n".join(rows) + "</tbody></table></div>\n<ul>"
            + "".join(f"<li>{escape(note)}</li>" for note in shown.notes) + "</ul>")


def article(entry: Entry, number: int, name: str, where: Path) -> str:
    """What stands behind one point: numbers, curves, records, commands."""
    first = entry.runs[0]
    quirks = ", ".join(sorted(first.run["quirks"])) or "none"
    facts = {"Accuracies": svg.summary(entry), "Weights": entry.weights, "Quirks of the original kept": quirks,
             "Trained before": ", ".join(entry.after) or "nothing", "Not the same in its group": "; ".join(entry.marks)
             or "nothing"}
    described = "".join(f"<dt>{escape(what)}</dt><dd>{escape(said)}</dd>" for what, said in facts.items())
    runs = "".join(f"<h4>{escape(run.name)}</h4>{behind(run, record, where)}"
                   for run, record in zip(entry.runs, entry.records, strict=True))
    drawn = svg.curves(entry, f"{name}-curves")
    curves = f"<figure>{drawn}</figure>" if drawn else "<p>The records hold no curves.</p>"
    up = f'<p><a href="#{escape(name.rpartition("-")[0])}">Back to its group</a></p>'
    return (f'<article id="{escape(entry.key)}" aria-labelledby="{name}-h"><h3 id="{name}-h">{number}. '
            f"{escape(entry.label)} ({escape(entry.paper)})</h3><dl>{described}</dl>{curves}{runs}{up}</article>")


def behind(run: RunRecord, record: EvalRecord, where: Path) -> str:
    """Links to the records of one run, and its two commands."""
    files = [run.folder / "run.json", run.folder / "train.json", record.path, record.path.with_name(
        record.record["flags"]), run.folder / "metrics.jsonl"]
    links = ", ".join(link(path, path.name, where) for path in files if path.exists())
    commands = "".join(f'<p>{what}:</p><pre tabindex="0"><code>{escape(command)}</code></pre>' for what, command in (
        ("Trained by", run.run["command"]), ("Judged by", record.record["command"])))
    return f"<p>Records: {links}</p>{commands}"


def left(board: Board) -> str:
    """The runs that take part in no group, and why."""
    if not board.left:
        return ""
    rows = "".join(f"<li><code>{escape(run)}</code>: {escape(why)}</li>" for run, why in board.left)
    return f'<section aria-labelledby="left"><h2 id="left">Left aside</h2><ul>{rows}</ul></section>'
