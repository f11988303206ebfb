"""One self-contained page: every table beside the paper's numbers, and every run with its curves, config, machine."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robustrun.report import curves, overlay, svg
from robustrun.report.index import Found
from robustrun.report.render import LEGEND, MARKS, number, papers
from robustrun.report.view import RowView, TableView

_SPOKEN = {
    "within": "within tolerance",
    "better": "better than the paper",
    "worse": "worse than the paper",
    "outside": "different from the paper",
}


def page(views: Sequence[TableView], runs: Sequence[Found], left_out: int = 0) -> str:
    """The page. `left_out` says how many further runs there are."""
    anchors = {run.path: f"run-{i}" for i, run in enumerate(runs)}
    here = Path(__file__).parent
    style, script = (here / "page.css").read_text(), (here / "page.js").read_text()
    done = sum(view.done for view in views)
    total = sum(len(view.rows) for view in views)
    views = sorted(views, key=lambda view: not view.started)  # what there is to see comes first
    tables = "".join(_table(view, anchors) for view in views)
    labels = {run.path: row.row.label for view in views for row in view.rows for run in row.runs}
    details = "".join(_run(run, anchors[run.path], labels.get(run.path, "")) for run in runs)
    together = "".join(_together(title, rows) for title, rows in overlay.comparisons(runs).items())
    if together:
        together = f'<section aria-labelledby="rows"><h2 id="rows">Comparisons</h2>{together}</section>'
    more = f"<p>{left_out} older runs are left out; name their directories to see them.</p>" if left_out else ""
    links = "".join(
        f'<li><a href="#{_anchor(v.name)}">{escape(v.name)}</a> <span>{v.done}/{len(v.rows)}</span></li>' for v in views
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>robustrun report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>robustrun report</h1>
<p>{done} of {total} rows of {len(views)} tables are reproduced; {len(runs)} runs.
{made}, robustrun {version("robustrun")}. {escape(LEGEND)}.</p>
<form role="search">
<label>Filter rows and runs <input type="search" id="filter" autocomplete="off"></label>
<label>Show <select id="status"><option value="">all rows</option><option value="done">done</option>
<option value="open">not done</option></select></label>
<output id="count" role="status"></output>
</form>
</header>
<nav aria-label="Tables"><ul>{links}</ul></nav>
<main>
<section aria-labelledby="tables"><h2 id="tables">Tables</h2>{tables or "<p>None.</p>"}</section>
{together}
<section aria-labelledby="runs"><h2 id="runs">Runs</h2>{details or "<p>None yet.</p>"}{more}</section>
</main>
<script>{script}</script>
</body>
</html>
"""


def _anchor(name: str) -> str:
    return "table-" + name.replace(".", "-")


def _table(view: TableView, anchors: Mapping[Path, str]) -> str:
    heads = ["row"]
    for metric, column in view.table.columns.items():
        heads += [column.title, "paper"] if view.has_paper(metric) else [column.title]
    heads += ["status", "runs"]
    head = "".join(f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in heads)
    body = "".join(_row(row, view, anchors) for row in view.rows)
    figure = curves.of_table(view)
    notes = "".join(f"<li>{escape(row.row.label)}: {escape(row.row.note)}</li>" for row in view.rows if row.row.note)
    remark = f'<p class="remark">{escape(view.remark)}</p>' if view.remark else ""
    name = _anchor(view.name)
    unrun = f"<details class='unrun'><summary>{len(view.rows)} rows, none run yet</summary>"
    fold, unfold = ("", "") if view.started else (unrun, "</details>")
    return (
        f'<section class="table" id="{name}" aria-labelledby="{name}-title">'
        f'<h3 id="{name}-title">{escape(view.name)}</h3><p>{escape(view.table.caption)} '
        f"<cite>({escape(view.table.source)})</cite></p>{remark}"
        f'{fold}<div class="scroll" tabindex="0" role="region" aria-label="{escape(view.name)}, scrollable">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        + (f"<ul class='notes'>{notes}</ul>" if notes else "")
        + unfold
        + (svg.draw(figure) if figure else "")
        + _overlaid({row.row.label: row.runs[0].path.parent for row in view.rows if row.runs})
        + "</section>"
    )


def _overlaid(runs: Mapping[str, Path]) -> str:
    """The figures that the runs share, folded away."""
    drawn = "".join(map(svg.draw, overlay.overlay(runs).values()))
    return (
        f"<details><summary>Curves of the rows</summary><div class='figures'>{drawn}</div></details>" if drawn else ""
    )


def _together(title: str, rows: Mapping[str, Path]) -> str:
    drawn = "".join(map(svg.draw, overlay.overlay(rows).values()))
    return f"<h3>{escape(title)}</h3><div class='figures'>{drawn}</div>" if drawn else ""


def _row(row: RowView, view: TableView, anchors: Mapping[Path, str]) -> str:
    cells = []
    for metric, cell in row.cells.items():
        mark = ""
        if cell.verdict:
            spoken = _SPOKEN[cell.verdict]
            mark = f' <span class="{cell.verdict}" role="img" aria-label="{spoken}">{MARKS[cell.verdict]}</span>'
        value = "" if cell.mean is None else repr(cell.mean)
        cells.append(f'<td class="number" data-value="{value}">{number(cell.mean, cell.std)}{mark}</td>')
        if not view.has_paper(metric):
            continue
        value = "" if cell.paper is None else repr(cell.paper)
        cells.append(f'<td class="number paper" data-value="{value}">{papers(cell, row, metric)}</td>')
    shown = [run for run in row.runs if run.path in anchors]
    links = ", ".join(f'<a href="#{anchors[run.path]}">{run.data["seed"]}</a>' for run in shown)
    runs = f"seed{'s' if len(shown) > 1 else ''} {links}" if shown else ""
    state = "done" if row.status == "done" else "open"
    label = escape(row.row.label)
    status = escape(row.status) + (f": {escape(row.error)}" if row.error else "")
    return (
        f'<tr data-status="{state}"><th scope="row"><span title="{escape(" ".join(row.row.overrides))}">{label}</span>'
        f"</th>{''.join(cells)}<td>{status}</td><td class='runs'>{runs}</td></tr>"
    )


def _run(run: Found, anchor: str, label: str) -> str:
    """A run, named by its row in a comparison or else by that in a table, `label`."""
    data, directory = run.data, run.path.parent
    title = ", ".join(filter(None, [data["exp"], data.get("row") or label, f"seed {data['seed']}"]))
    drawn = [*curves.training(directory).values(), *curves.certified(directory).values()]
    images = "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in curves.pictures(directory).items()
    )
    config = directory / "config.yaml"
    shown = f"<h3>Config</h3><pre tabindex='0'>{escape(config.read_text())}</pre>" if config.is_file() else ""
    return (
        f'<details class="run" id="{anchor}"><summary>{escape(title)} <small>{escape(_brief(data["metrics"]))}</small>'
        f"</summary><p><code>{escape(str(run.path))}</code><br><code>robustrun {escape(' '.join(data['overrides']))}"
        f"</code></p><div class='columns'>{_pairs('Metrics', data['metrics'])}"
        f"{_pairs('Times in seconds, counts', data['timings'] | data['counts'])}{_pairs('Machine', _flat(data['env']))}"
        f"</div><div class='figures'>{''.join(map(svg.draw, drawn))}{images}</div>{shown}</details>"
    )


def _brief(metrics: Mapping[str, float | None]) -> str:
    whole = [m for m in metrics if not m.endswith(("_low", "_high"))]
    return ", ".join(f"{m.replace('_', ' ')} {number(metrics[m])}" for m in whole[:3] if metrics[m] is not None)


def _flat(env: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in env.items() if k != "versions"} | dict(env.get("versions", {}))


def _pairs(title: str, values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"{value:.5g}" if isinstance(value, float) else str(value)

    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(text(v))}</td></tr>' for k, v in values.items())
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>" if rows else ""
