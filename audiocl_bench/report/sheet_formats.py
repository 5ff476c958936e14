"""Sheets as Markdown, LaTeX and HTML. All say the same: numbers, best in bold, numbered footnotes, what fills gaps.

Where a sheet has published numbers, a row has up to three lines: ours, the paper's, and ours minus the paper's. Text in
backticks is code. Names come from users and are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup, escape
from tabulate import tabulate

if TYPE_CHECKING:
    from audiocl_bench.report.sheets import Cell, Sheet

NOTHING = "-"
OURS, PAPER, DIFFERENCE = "ours", "paper", "ours - paper"
_DIGITS = 2
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "·": r"\textperiodcentered{}",
}


@dataclass(frozen=True)
class _Entry:
    """What stands in one place of the table.

    Attributes:
        text: the number, or a dash.
        best: bold.
        notes: numbers of its footnotes.
    """

    text: str
    best: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Line:
    row: str
    kind: str
    entries: tuple[_Entry, ...]


def _lines(sheet: Sheet) -> list[_Line]:
    """Return the lines of a sheet; a line of differences only where there is one."""
    number = {text: position for position, text in enumerate(sheet.footnotes(), start=1)}
    lines = []
    for row in sheet.rows:
        cells = [sheet.cell(row, column) for column in sheet.columns]
        lines.append(_Line(row, OURS, tuple(_ours(cell, number) for cell in cells)))
        if sheet.has_paper:
            lines.append(_Line(row, PAPER, tuple(_paper(cell, number) for cell in cells)))
            if any(cell.difference is not None for cell in cells):
                lines.append(_Line(row, DIFFERENCE, tuple(_Entry(_signed(cell.difference)) for cell in cells)))
    return lines


def _ours(cell: Cell, number: dict[str, int]) -> _Entry:
    notes = tuple(sorted({number[note] for note in cell.notes}))
    if cell.mean is None:
        return _Entry(NOTHING, notes=notes)
    interval = "" if cell.half_width is None else f" ± {cell.half_width:.{_DIGITS}f}"
    return _Entry(f"{cell.mean:.{_DIGITS}f}{interval}", cell.best, notes)


def _paper(cell: Cell, number: dict[str, int]) -> _Entry:
    text = NOTHING if cell.paper is None else f"{cell.paper:.{_DIGITS}f}"
    return _Entry(text, notes=tuple(sorted({number[note] for note in cell.paper_notes})))


def _signed(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:+.{_DIGITS}f}".replace("-0.00", "+0.00")


def _warning(sheet: Sheet) -> str:
    return f"NOT COMPARABLE with published numbers: {sheet.warning}." if sheet.warning else ""


def _legend(sheet: Sheet) -> str:
    """Say what bold means, where something is bold."""
    if not any(cell.best for cell in sheet.cells):
        return ""
    return "Bold: the best of the numbers that may be compared (one benchmark, split and network; equal orders)."


def _gaps(sheet: Sheet) -> tuple[str, ...]:
    return tuple(command.text(data=sheet.data, results=sheet.results) for command in sheet.commands())


# ------------------------------------------------------------------------------------------------------------- Markdown


def markdown(sheets: Sequence[Sheet]) -> str:
    """Return sheets as GitHub Markdown that is read as well in a terminal; footnotes are marked [1]."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    kinds = sheet.has_paper
    lines, before = [], ""
    for line in _lines(sheet):
        names = [_markdown_text(line.row) if line.row != before else "", *([line.kind] if kinds else [])]
        lines.append([*names, *(_markdown_entry(entry) for entry in line.entries)])
        before = line.row
    head = [sheet.row_heading, *([""] if kinds else []), *map(_markdown_text, sheet.columns)]
    align = ["left"] * (1 + kinds) + ["right"] * len(sheet.columns)
    table = tabulate(lines, head, tablefmt="pipe", disable_numparse=True, colalign=align if lines else None)
    parts = [f"**{_markdown_text(sheet.title)}**"]
    parts += [f"**{_markdown_text(text)}**" for text in (_warning(sheet),) if text]
    parts += [_markdown_text(sheet.setting), table]
    parts += [_markdown_text(text) for text in (_legend(sheet),) if text]
    # Two spaces: a line of its own in Markdown too.
    notes = [f"[{number}] {_markdown_text(text)}" for number, text in enumerate(sheet.footnotes(), start=1)]
    if notes:
        parts.append("  \n".join(notes))
    parts += [_markdown_text(text) for text in (*sheet.remarks, *sheet.hints)]
    if commands := _gaps(sheet):
        parts.append("Empty or unfinished cells are filled by:")
        parts.append("\n".join(["```sh", *commands, "```"]))
    return "\n\n".join(parts) + "\n"


def _markdown_entry(entry: _Entry) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} [{','.join(map(str, entry.notes))}]" if entry.notes else text


def _markdown_text(text: str) -> str:
    """Escape what Markdown would read; `code` stays code."""

    def plain(part: str) -> str:
        return re.sub(r"([\\*\[\]|])", r"\\\1", part).replace("<", "&lt;")

    return _with_code(text, plain, lambda code: f"`{code.replace('|', chr(92) + '|')}`")


def _with_code(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Apply one function to plain text and another to what stands in backticks; a single backtick is plain."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    return "".join(code(part) if position % 2 else plain(part) for position, part in enumerate(parts))


# ---------------------------------------------------------------------------------------------------------------- LaTeX


def latex(sheets: Sequence[Sheet]) -> str:
    """Return one table environment per sheet, for booktabs; the commands that fill gaps stand below as comments."""
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex(sheet) for sheet in sheets)


def _latex(sheet: Sheet) -> str:
    kinds = sheet.has_paper
    sentences = [f"{sheet.title}.", _warning(sheet), sheet.setting, _legend(sheet)]
    caption = " ".join(_latex_text(text) for text in sentences if text)
    head = [_latex_text(sheet.row_heading), *([""] if kinds else []), *map(_latex_text, sheet.columns)]
    body, before = [], ""
    for line in _lines(sheet):
        if kinds and before and line.row != before:
            body.append(r"    \addlinespace")
        names = [
            _latex_text(line.row) if line.row != before else "",
            *([line.kind.replace(" - ", " $-$ ")] if kinds else []),
        ]
        body.append(f"    {' & '.join([*names, *(_latex_entry(entry) for entry in line.entries)])} \\\\")
        before = line.row
    notes = [
        rf"  \textsuperscript{{{number}}}~{_latex_text(text)}" for number, text in enumerate(sheet.footnotes(), start=1)
    ]
    notes += [f"  {_latex_text(text)}" for text in sheet.remarks]
    small = ["  \\par\\medskip\\raggedright\\footnotesize", " \\\\\n".join(notes)] if notes else []
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', sheet.name)}}}",
            rf"  \begin{{tabular}}{{{'l' * (1 + kinds)}{'r' * len(sheet.columns)}}}",
            r"    \toprule",
            f"    {' & '.join(head)} \\\\",
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            *small,
            r"\end{table}",
            *(f"% {' '.join(text.split())}" for text in sheet.hints),
            *(f"% fill: {' '.join(command.split())}" for command in _gaps(sheet)),
            "",
        ]
    )


def _latex_entry(entry: _Entry) -> str:
    text = {NOTHING: "--"}.get(entry.text) or _latex_number(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return rf"{text}\textsuperscript{{{','.join(map(str, entry.notes))}}}" if entry.notes else text


def _latex_number(text: str) -> str:
    sign = {"-": "$-$", "+": "$+$"}.get(text[0])
    return _latex_text(text) if sign is None else sign + _latex_text(text[1:])


def _latex_text(text: str) -> str:
    def plain(part: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in part)

    # A typewriter font may join two hyphens into a dash.
    return _with_code(text, plain, lambda code: rf"\texttt{{{plain(code).replace('--', '-{}-')}}}")


# ----------------------------------------------------------------------------------------------------------------- HTML


def html(sheets: Sequence[Sheet]) -> str:
    """Return a standalone page: no script, no network, light and dark, wide tables scroll by keyboard too."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    title = sheets[0].title if len(sheets) == 1 else "Tables"
    return environment.from_string(_PAGE).render(title=title, style=Markup(_STYLE), sheets=_html_sheets(sheets))


def _html_sheets(sheets: Sequence[Sheet]) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = []
    for position, sheet in enumerate(sheets, start=1):
        groups: dict[str, list[_Line]] = {}
        for line in _lines(sheet):
            groups.setdefault(line.row, []).append(line)
        # Several sheets of one page may have the same name.
        anchor = re.sub(r"[^A-Za-z0-9-]+", "-", sheet.name) + ("" if len(sheets) == 1 else f"-{position}")
        shown.append(
            {
                "anchor": anchor,
                "title": _html_text(sheet.title),
                "warning": _warning(sheet),
                "setting": _html_text(sheet.setting),
                "legend": _legend(sheet),
                "row_heading": sheet.row_heading,
                "kinds": sheet.has_paper,
                "columns": sheet.columns,
                "groups": [(row, [(_html_kind(line.kind), line) for line in lines]) for row, lines in groups.items()],
                "notes": [_html_text(text) for text in sheet.footnotes()],
                "remarks": [_html_text(text) for text in (*sheet.remarks, *sheet.hints)],
                "commands": _gaps(sheet),
            }
        )
    return shown


def _html_kind(kind: str) -> str:
    return kind.replace(" - ", " − ")


def _html_text(text: str) -> Markup:
    return Markup(_with_code(text, lambda part: str(escape(part)), lambda code: f"<code>{escape(code)}</code>"))


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --rule: #8c8c8c; --band: #f3f3f3;
  --link: #0b57a4; --warn: #7a3e00; --warnband: #fff3e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #161616; --soft: #b5b5b5; --rule: #7a7a7a;
  --band: #222; --link: #8ec1f5; --warn: #ffd199; --warnband: #3a2a12; } }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
section + section { margin-top: 3rem; }
a { color: var(--link); }
a:focus-visible, [tabindex]:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; position: relative; }
table { border-collapse: collapse; border-block: 2px solid var(--ink); font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .75rem; }
caption div { position: sticky; left: 0; max-width: min(60rem, calc(100vw - 3rem)); }
caption strong { display: block; font-size: 1.2rem; }
.warning { display: block; margin: .4rem 0; padding: .3rem .6rem; border-left: .3rem solid var(--warn);
  background: var(--warnband); color: var(--warn); font-weight: 600; }
th, td { padding: .3rem .75rem; text-align: right; white-space: nowrap; font-weight: 400; }
th[scope=rowgroup], th[scope=row], thead th.name { text-align: left; vertical-align: top; }
thead th, th[scope=rowgroup], tbody th.only { font-weight: 600; }
thead { border-bottom: 1px solid var(--ink); }
.kinds tbody + tbody { border-top: 1px solid var(--rule); }
.kinds tbody th[scope=row], .paper td, .difference td { color: var(--soft); }
th.name:first-child, th[scope=rowgroup], th.only { position: sticky; left: 0; background: var(--paper); }
table:not(.kinds) tbody:nth-of-type(even), tbody:nth-of-type(even) th.only { background: var(--band); }
.heard { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
sup { line-height: 0; padding-left: .15em; }
pre { overflow-x: auto; padding: .75rem; background: var(--band); }
.notes { max-width: 60rem; font-size: .925rem; }
@media (max-width: 40rem) { th, td { padding: .3rem .4rem; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
{% for sheet in sheets %}
<section>
<div class="scroll" role="region" aria-labelledby="{{ sheet.anchor }}" tabindex="0">
<table{% if sheet.kinds %} class="kinds"{% endif %}>
<caption><div id="{{ sheet.anchor }}"><strong>{{ sheet.title }}</strong>
{% if sheet.warning %}<span class="warning">{{ sheet.warning }}</span>{% endif %}
{{ sheet.setting }}{% if sheet.legend %} {{ sheet.legend }}{% endif %}</div></caption>
<thead>
<tr>
<th scope="col" class="name">{{ sheet.row_heading }}</th>
{% if sheet.kinds %}<th scope="col" class="name">whose</th>
{% endif %}
{% for column in sheet.columns %}
<th scope="col">{{ column }}</th>
{% endfor %}
</tr>
</thead>
{% for row, lines in sheet.groups %}
<tbody>
{% for kind, line in lines %}
<tr{% if sheet.kinds %} class="{{ line.kind.split()|last if loop.index < 3 else 'difference' }}"{% endif %}>
{% if sheet.kinds %}
{% if loop.first %}<th scope="rowgroup" rowspan="{{ lines|length }}">{{ row }}</th>
{% endif %}
<th scope="row">{{ kind }}</th>
{% else %}
<th scope="row" class="only">{{ row }}</th>
{% endif %}
{% for entry in line.entries %}
<td>\
{% if entry.text == '-' %}<span aria-hidden="true">–</span><span class="heard">none</span>\
{% elif entry.best %}<strong>{{ entry.text }}</strong>\
{% else %}{{ entry.text.replace('-', '−') }}{% endif %}\
{% for note in entry.notes %}<sup>{% if not loop.first %},{% endif %}<a href="#{{ sheet.anchor }}-note-{{ note }}" \
aria-label="footnote {{ note }}">{{ note }}</a></sup>{% endfor %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
</div>
<div class="notes">
{% if sheet.notes %}
<ol>
{% for note in sheet.notes %}
<li id="{{ sheet.anchor }}-note-{{ loop.index }}">{{ note }}</li>
{% endfor %}
</ol>
{% endif %}
{% for remark in sheet.remarks %}
<p>{{ remark }}</p>
{% endfor %}
{% if sheet.commands %}
<p>Empty or unfinished cells are filled by:</p>
<pre tabindex="0"><code>{{ sheet.commands|join('\\n') }}</code></pre>
{% endif %}
</div>
</section>
{% endfor %}
</main>
</body>
</html>
"""
