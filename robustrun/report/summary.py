"""What a run prints at its end: its figures beside the paper's, one table for a comparison."""

from collections.abc import Sequence

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


def comparison(results: Sequence[tuple[str, Result | None]], title: str) -> Table:
    """One row a job, one column a metric that any of them reports."""
    names = list(dict.fromkeys(name for _, result in results if result for name in shown(result)))
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    for name in [*names, "train seconds"]:
        table.add_column(name.replace("_", " "), justify="right")
    for label, result in results:
        if result is None:
            table.add_row(label, *["-"] * (len(names) + 1))
            continue
        seconds = result.timings.get("train", result.timings.get("fit"))
        table.add_row(label, *[with_interval(result, name) for name in names], f"{seconds:.1f}" if seconds else "-")
    return table


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
