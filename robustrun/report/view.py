"""A table as it is shown: the paper's numbers beside ours, each judged, with where ours came from."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustrun.registry import nearest
from robustrun.report.index import Found
from robustrun.report.tables import Column, Row, Table

Verdict = Literal["within", "better", "worse", "outside", ""]


@dataclass(frozen=True)
class Cell:
    """One number of ours (mean and standard deviation over seeds) beside the paper's, in the unit shown."""

    mean: float | None = None
    std: float | None = None
    paper: float | None = None
    paper_std: float | None = None
    verdict: Verdict = ""


@dataclass(frozen=True)
class RowView:
    """A row as it stands: how many of its seeds are done, its cells, its sources; `error` where it makes no sense."""

    id: str
    row: Row
    cells: Mapping[str, Cell]
    runs: Sequence[Found] = ()
    error: str = ""

    @property
    def status(self) -> str:
        """done, missing, error, or how many of the seeds are there."""
        done, total = len(self.runs), len(self.row.seeds)
        if self.error and not done:
            return "error"
        if done == total:
            return "done"
        return f"{done} of {total} seeds" if done else "missing"


@dataclass(frozen=True)
class TableView:
    """A table as it stands. `reduced` are overrides that make its rows other jobs than the paper's."""

    name: str
    table: Table
    rows: Sequence[RowView]
    reduced: Sequence[str] = field(default=())

    @property
    def done(self) -> int:
        """How many rows are done."""
        return sum(row.status == "done" for row in self.rows)

    @property
    def started(self) -> bool:
        """Whether anything was run for it, or something is wrong with it."""
        return any(row.runs or row.error for row in self.rows)

    def has_paper(self, metric: str) -> bool:
        """Whether the paper reports the metric at all, known to us or not."""
        return any(metric in row.row.paper for row in self.rows)

    @property
    def title(self) -> str:
        """The table's name, caption and source."""
        return f"{self.name}: {self.table.caption} ({self.table.source})"

    @property
    def remark(self) -> str:
        """What was reduced against the paper, if anything."""
        return f"REDUCED: {' '.join(self.reduced)}. Not the paper's settings." if self.reduced else ""


def row_view(
    name: str,
    row: Row,
    columns: Mapping[str, Column],
    runs: Sequence[Found],
    error: str = "",
    reduced: bool = False,
    elsewhere: Collection[str] = (),
) -> RowView:
    """A row of the table from the runs that were found for it, one a seed at most.

    That they do not report a metric is an error, unless runs `elsewhere` in the table do.
    """
    cells = {}
    for metric, column in columns.items():
        paper, paper_std = row.paper.get(metric, (None, None))
        values, missing = _values(runs, metric)
        error = error or ("" if metric in elsewhere else missing)
        shown = [column.shown(value) for value in values]
        mean = statistics.fmean(shown) if shown else None
        std = statistics.stdev(shown) if len(shown) > 1 else None
        verdict = "" if reduced or len(runs) < len(row.seeds) else _judge(column, mean, paper)
        cells[metric] = Cell(mean, std, paper, paper_std, verdict)
    return RowView(name, row, cells, runs, error)


def _values(runs: Sequence[Found], metric: str) -> tuple[list[float], str]:
    values = []
    for run in runs:
        try:
            value = run.value(metric)
        except KeyError:
            known = list(run.data["metrics"])
            hint = nearest(metric, known)
            return [], f"{run.path.parent} reports no '{metric}'{hint} (it reports: {', '.join(known)})"
        if value is not None and math.isfinite(value):
            values.append(value)
    return values, ""


def _judge(column: Column, mean: float | None, paper: float | None) -> Verdict:
    if mean is None or paper is None or column.tolerance is None:
        return ""
    if abs(mean - paper) <= column.tolerance:
        return "within"
    if column.better is None:
        return "outside"
    return "better" if (mean > paper) == (column.better == "higher") else "worse"
