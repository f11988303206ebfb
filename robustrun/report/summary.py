"""What a run prints at its end: its figures beside the paper's, one table for a comparison."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from robustrun.report.results import Result


def single(result: Result, title: str) -> Table:
    """The figures of one job, one a line."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if result.paper_metrics:
        table.add_column("paper", justify="right")
    for name in shown(result):
        paper = [number(result.paper_metrics.get(name))] if result.paper_metrics else []
        table.add_row(name, with_interval(result, name), *paper)
    return table


FEW = 6  # more columns than this do not fit side by side


def comparison(results: Sequence[tuple[str, Result | None]], title: str) -> Group:
    """Each job's metrics: one line a job where they are few, else one column a job, so many side by side as fit."""
    names = list(dict.fromkeys(name for _, result in results if result for name in shown(result)))
    heads = ["row", *(name.replace("_", " ") for name in names), "train seconds"]
    lines = [[label, *_cells(result, names)] for label, result in results]
    if len(names) <= FEW:
        return Group(_table(title, heads, lines))
    tables = [
        _table("" if start else title, *_turned(heads, lines[start : start + FEW]))
        for start in range(0, len(lines), FEW)
    ]
    return Group(*tables)


def _turned(heads: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    heads, *lines = (list(column) for column in zip(heads, *lines, strict=True))
    return heads, lines


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Nothing in it is cut short."""
    table = Table(title=title or None, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _cells(result: Result | None, names: Sequence[str]) -> list[str]:
    if result is None:
        return ["-"] * (len(names) + 1)
    seconds = result.timings.get("train", result.timings.get("fit"))
    return [*(with_interval(result, name) for name in names), f"{seconds:.1f}" if seconds else "-"]


def shown(result: Result) -> list[str]:
    """The metrics that stand for themselves: `x_low` and `x_high` are shown with `x`."""
    ends = {f"{name}_{end}" for name in result.metrics for end in ("low", "high")}
    return [name for name in result.metrics if name not in ends]


def with_interval(result: Result, name: str) -> str:
    """A metric, with its confidence interval in brackets where the certifier gives one."""
    value, low, high = (result.metrics.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    interval = f" [{number(low)}, {number(high)}]" if low is not None and high is not None else ""
    return number(value) + interval


def number(value: float | None) -> str:
    """Four significant digits, whole numbers as such, a dash for nothing."""
    return "-" if value is None else f"{value:.4g}"
