"""The figures of a report: a run's training curves and its certifier's curves, and the tables that are figures."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robustrun.report.figures import ABOUT, draw
from robustrun.report.view import TableView
from robustrun.roles import Figure

_POINTS = 300  # of a curve; more cannot be seen
_NOT_DRAWN = ("step", "time", "epoch", "seconds", "lr")


def training(run_dir: Path) -> dict[str, Figure]:
    """Curves of metrics.jsonl, those of one quantity (the last word of the name) in one figure."""
    lines = _lines(run_dir / "metrics.jsonl")
    abscissa = "epoch" if lines and all("epoch" in line for line in lines) else "step"
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and not name.endswith(_NOT_DRAWN) and abscissa in line:
                points[name].append((line[abscissa], value))
    figures: dict[str, Figure] = {}
    for name, curve in points.items():
        if len(curve) < 2:
            continue
        quantity = name.replace("/", "_").rpartition("_")[2]
        figure = figures.setdefault(quantity, Figure(f"training: {quantity}", xlabel=abscissa, ylabel=quantity))
        kept = curve[:: math.ceil(len(curve) / _POINTS)]
        figure.series[name] = tuple(np.array(column, dtype=float) for column in zip(*kept, strict=True))
    return figures


def _lines(path: Path) -> list[dict]:
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short by a kill
            continue
    return [line for line in found if isinstance(line, dict)]


def certified(run_dir: Path) -> dict[str, Figure]:
    """The curves that the certifier drew, from the data that it wrote beside each; none of what is no curve."""
    figures, about = {}, _about(run_dir)
    for path in sorted((run_dir / "figures").glob("*.csv")):
        how = about.get(path.stem, {})
        if how.get("kind") == "custom":
            continue
        series: dict[str, list[list[float]]] = defaultdict(list)
        with open(path, newline="") as file:
            head, *rows = list(csv.reader(file)) or [["series", "x", "y"]]
        for row in rows:
            series[row[0]].append([float(value) for value in row[1:] if value != ""])
        curves = {label: tuple(np.array(rows).T) for label, rows in series.items() if len({len(r) for r in rows}) == 1}
        xlabel, ylabel = (name if name not in ("x", "y") else "" for name in head[1:3])
        title = how.pop("title", path.stem.replace("_", " "))
        figures[path.stem] = Figure(title, xlabel, ylabel, curves, **how)
    return figures


def _about(run_dir: Path) -> dict[str, dict[str, str]]:
    """What `figures.write` noted of each figure, as far as it makes sense; nothing of older runs."""
    try:
        noted = json.loads((run_dir / "figures" / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    scales = ("linear", "log")
    known = {"kind": ("line", "step", "scatter", "image", "custom"), "xscale": scales, "yscale": scales}
    about = {}
    for name, how in noted.items() if isinstance(noted, dict) else ():
        those = {key: how.get(key) for key in ("title", *known)} if isinstance(how, dict) else {}
        about[name] = {k: v for k, v in those.items() if isinstance(v, str) and v in known.get(k, (v,))}
    return about


def pictures(run_dir: Path) -> dict[str, bytes]:
    """The certifier's figures that are no curves, as PNG."""
    about, found = _about(run_dir), sorted((run_dir / "figures").glob("*.png"))

    def curved(path: Path) -> bool:
        return path.with_suffix(".csv").exists() and about.get(path.stem, {}).get("kind") != "custom"

    return {path.stem: path.read_bytes() for path in found if not curved(path)}


def of_table(view: TableView) -> Figure | None:
    """A table that is a figure in the paper: each column (and series of rows) against x, the paper's points beside."""
    axes = view.table.figure
    if axes is None:
        return None
    figure = Figure(view.table.caption, axes.xlabel, axes.ylabel, xscale=axes.xscale)
    for metric, column in view.table.columns.items():
        for name in dict.fromkeys(row.row.series for row in view.rows):
            rows = sorted((r for r in view.rows if r.row.series == name), key=lambda r: r.row.x)
            label = " ".join(filter(None, [name, column.heading]))
            ours = [(r.row.x, r.cells[metric].mean, r.cells[metric].std or 0.0) for r in rows]
            ours = [(x, mean, mean - std, mean + std) for x, mean, std in ours if mean is not None]
            papers = [(r.row.x, r.cells[metric].paper) for r in rows if r.cells[metric].paper is not None]
            for name_of, points in ((label, ours), (f"{label}, paper", papers)):
                if points:
                    figure.series[name_of] = tuple(np.array(c, dtype=float) for c in zip(*points, strict=True))
    return figure if figure.series else None


def write(figures: Mapping[str, Figure], directory: Path) -> None:
    """Every figure as NAME.png and NAME.pdf."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            draw(figure, directory / f"{name.replace('/', '-')}.{suffix}")
