"""Tables for the terminal, for a README, for a spreadsheet, for a paper, for a program."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from robustrun.report.terminal import console
from robustrun.report.view import Cell, RowView, TableView

MARKS = {"within": "✓", "better": "▲", "worse": "▼", "outside": "✗", "": ""}
LEGEND = "✓ within tolerance of the paper; outside it: ▲ better, ▼ worse, ✗ different"
_COLOURS = {"within": "green", "better": "cyan", "worse": "red", "outside": "red", "": ""}


def number(value: float | None, std: float | None = None) -> str:
    """A value: four significant digits, two decimals at most but for small ones, none of whole numbers.

    With a standard deviation, both have the decimals that give the deviation two digits, again two at most.
    """
    if value is None:
        return "-"
    size = abs(value)
    if std is None:
        places = 0 if float(value).is_integer() else _places(size, 4)
        return f"{value:.{places}f}" if 0.1 <= size < 1e6 else f"{value:.4g}"
    if max(size, std) >= 1e6:
        return f"{value:.4g} ± {std:.2g}"
    places = _places(std, 2, most=2 if max(size, std) >= 0.1 else 8)
    return f"{value:.{places}f} ± {std:.{places}f}"


def _places(value: float, digits: int, most: int = 2) -> int:
    """How many decimals a positive number needs to have so many digits."""
    return min(max(digits - 1 - math.floor(math.log10(value)), 0), most) if value > 0 else 2


def ours(cell: Cell) -> str:
    """Our number with its verdict."""
    return f"{number(cell.mean, cell.std)} {MARKS[cell.verdict]}".rstrip()


def papers(cell: Cell, row: RowView, metric: str) -> str:
    """The paper's number in the paper's digits; a question mark where the paper's is not known."""
    if cell.paper is None:
        return "?" if metric in row.row.paper else "-"
    return f"{cell.paper:.6g}" if cell.paper_std is None else number(cell.paper, cell.paper_std)


def source(row: RowView) -> str:
    """Where the row's numbers come from."""
    return "; ".join(f"{run.path.parent} ({run.where})" for run in row.runs)


def overview(views: Sequence[TableView]) -> str:
    """All tables, one a line, on the terminal."""
    grid = RichTable(title="robustrun table NAME shows one, --run launches what is missing", title_justify="left")
    for heading, justify in (("table", "left"), ("what", "left"), ("source", "left"), ("done", "right")):
        grid.add_column(heading, justify=justify, no_wrap=heading == "table")
    for view in views:
        style = "green" if view.done == len(view.rows) else "yellow" if any(r.runs for r in view.rows) else ""
        done = Text(f"{view.done} of {len(view.rows)}", style=style)
        grid.add_row(view.name, Text(view.table.caption), Text(view.table.source), done)
    return _printed(grid)


def rich(view: TableView) -> str:
    """The table on a terminal, with the sources of its numbers below."""
    grid = RichTable(title=Text(view.title), title_justify="left")
    grid.add_column("row")
    for metric, column in view.table.columns.items():
        grid.add_column(Text(column.title), justify="right")
        if view.has_paper(metric):
            grid.add_column("paper", justify="right", style="dim")
    grid.add_column("status")
    for row in view.rows:
        cells: list[Any] = [Text(row.row.label)]
        for metric, cell in row.cells.items():
            cells.append(Text(ours(cell), style=_COLOURS[cell.verdict]))
            cells += [papers(cell, row, metric)] if view.has_paper(metric) else []
        grid.add_row(*cells, _status(row, view))
    lines = [_printed(grid), view.remark, *(f"{row.row.label}: {row.row.note}" for row in view.rows if row.row.note)]
    lines += [f"{row.row.label}: {source(row)}" for row in view.rows if row.runs]
    if any(cell.verdict for row in view.rows for cell in row.cells.values()):
        lines.append(LEGEND)
    return "\n".join(filter(None, lines))


def _status(row: RowView, view: TableView) -> str:
    return f"{row.status} (reduced)" if view.reduced and row.runs else row.status


def _printed(grid: RichTable) -> str:
    screen = console()
    with screen.capture() as capture:
        screen.print(grid)
    return capture.get().rstrip("\n")


def markdown(view: TableView) -> str:
    """A table for a README."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    columns = view.table.columns.items()
    pairs = [h for m, c in columns for h in ([c.title, "paper"] if view.has_paper(m) else [c.title])]
    headings = ["row", *pairs, "status"]
    lines = [f"**{view.title}**", "", *([view.remark, ""] if view.remark else []), line(headings)]
    lines.append(line(["---", *["---:"] * (len(headings) - 2), "---"]))
    for row in view.rows:
        pairs = []
        for metric, cell in row.cells.items():
            pairs += [ours(cell), papers(cell, row, metric)] if view.has_paper(metric) else [ours(cell)]
        lines.append(line([row.row.label, *pairs, _status(row, view)]))
    sources = [f"- {row.row.label}: {source(row)}" for row in view.rows if row.runs]
    return "\n".join(lines + (["", *sources] if sources else []))


def comma_separated(view: TableView) -> str:
    """One line a row; every column with its deviation, the paper's value and the verdict."""
    text = io.StringIO()
    parts = ("", "_std", "_paper", "_paper_std", "_verdict")
    writer = csv.writer(text, lineterminator="\n")
    metrics = [metric + part for metric in view.table.columns for part in parts]
    writer.writerow(["table", "row", "label", "status", "seeds", *metrics, "reduced", "source"])
    for row in view.rows:
        numbers = [
            "" if v is None else v for c in row.cells.values() for v in (c.mean, c.std, c.paper, c.paper_std, c.verdict)
        ]
        writer.writerow(
            [view.name, row.id, row.row.label, row.status, len(row.runs), *numbers, " ".join(view.reduced), source(row)]
        )
    return text.getvalue().rstrip("\n")


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "✓": r"$\checkmark$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "✗": r"$\times$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def tex(text: str) -> str:
    """Text with everything escaped that LaTeX would take for its own."""
    return "".join(_TEX.get(character, character) for character in text)


def latex(view: TableView) -> str:
    """A booktabs table for a paper (packages booktabs and amssymb)."""
    columns = view.table.columns.values()
    spec = "l" + "rr" * len(columns)
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{tex(column.title)}}}" for column in columns)
    rules = " ".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(columns)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(f'{view.table.caption} ({view.table.source}).')}"]
    lines[-1] += f" {tex(view.remark)}}}" if view.remark else "}"
    lines += [rf"\label{{tab:{view.name.replace('.', '-').replace('_', '-')}}}", rf"\begin{{tabular}}{{{spec}}}"]
    lines += [r"\toprule", rf" & {heads} \\", rules, " & " + " & ".join(["ours & paper"] * len(columns)) + r" \\"]
    lines.append(r"\midrule")
    for row in view.rows:
        pairs = [tex(text) for metric, cell in row.cells.items() for text in (ours(cell), papers(cell, row, metric))]
        lines.append(" & ".join([tex(row.row.label), *pairs]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def as_data(view: TableView) -> dict[str, Any]:
    """The table as builtins, for JSON."""
    return {
        "name": view.name,
        "caption": view.table.caption,
        "source": view.table.source,
        "reduced": list(view.reduced),
        "done": view.done,
        "columns": {metric: column.model_dump() for metric, column in view.table.columns.items()},
        "rows": [
            {
                "id": row.id,
                "label": row.row.label,
                "overrides": list(row.row.overrides),
                "seeds": list(row.row.seeds),
                "status": row.status,
                "error": row.error or None,
                "note": row.row.note or None,
                "cells": {metric: vars(cell) | {"verdict": cell.verdict or None} for metric, cell in row.cells.items()},
                "runs": [{"path": str(run.path), "where": run.where} for run in row.runs],
            }
            for row in view.rows
        ],
    }


def jsons(views: Sequence[TableView]) -> str:
    """All tables as one JSON list."""
    return json.dumps([as_data(view) for view in views], indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[TableView], str]] = {
    "rich": rich,
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
}
