"""Figures of a report: PNG (or PDF) for reading, the data behind each as CSV, and how they are drawn as JSON."""

import csv
import io
import json
import math
from pathlib import Path
from typing import IO

import numpy as np

from robustrun.roles import Figure
from robustrun.runtime.files import write_atomically

ABOUT = "figures.json"  # beside them: figure -> what its data do not say
_INSIDE = 8  # curves whose legend fits into the axes
_WIDE = 40  # letters of a label that takes a line of the legend for itself


def draw(figure: Figure, path: Path | IO[bytes]) -> None:
    """Draw a figure to `path`, whose suffix chooses the format, or as PNG into a binary file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure as Canvas

    columns = 1 if max(map(len, figure.series), default=0) > _WIDE else 2
    below = math.ceil(len(figure.series) / columns) if len(figure.series) > _INSIDE else 0  # lines of a legend below
    canvas = Canvas(figsize=(6.4, 4.2 + 0.18 * below), dpi=150, layout="constrained")
    if figure.draw is not None:
        figure.draw(canvas)
    else:
        axes = canvas.add_subplot()
        _draw_axes(figure, axes)
        if below:
            canvas.legend(loc="outside lower center", ncols=columns, fontsize=7)
        elif len(figure.series) > 1:
            axes.legend(fontsize=8)
    canvas.savefig(path)


def _draw_axes(figure: Figure, axes) -> None:
    axes.set_title(figure.title, fontsize=11)
    if figure.kind == "image":
        axes.imshow(figure.image, cmap="viridis", interpolation="nearest")
        axes.set_axis_off()
        return
    for label, (x, y, *band) in figure.series.items():
        if figure.kind == "scatter":
            axes.scatter(x, y, s=10, label=label)
        elif figure.kind == "step":
            axes.step(x, y, where="post", label=label)
        else:
            axes.plot(x, y, label=label, marker="o" if len(x) <= 20 else None, markersize=3)
        if len(band) == 2:
            step = "post" if figure.kind == "step" else None
            axes.fill_between(x, band[0], band[1], alpha=0.2, step=step)
    axes.set(xlabel=figure.xlabel, ylabel=figure.ylabel, xscale=figure.xscale, yscale=figure.yscale)
    axes.grid(alpha=0.3)


def to_csv(figure: Figure) -> str:
    """The data behind a figure: one line a point, series, x, y[, low, high], under the names of the axes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", figure.xlabel or "x", figure.ylabel or "y", "low", "high"])
    for label, columns in figure.series.items():
        for row in zip(*(np.asarray(column).tolist() for column in columns), strict=True):
            writer.writerow([label, *row])
    return text.getvalue()


def write(figures: dict[str, Figure], directory: Path) -> None:
    """Write every figure as NAME.png, its data as NAME.csv, and what they do not say into `ABOUT`."""
    if not figures:
        return
    about = {
        name: {"title": figure.title, "kind": figure.kind, "xscale": figure.xscale, "yscale": figure.yscale}
        for name, figure in figures.items()
    }
    write_atomically(directory / ABOUT, json.dumps(about, indent=2, ensure_ascii=False).encode())
    for name, figure in figures.items():
        if figure.series:
            write_atomically(directory / f"{name}.csv", to_csv(figure).encode())
        picture = io.BytesIO()
        draw(figure, picture)
        write_atomically(directory / f"{name}.png", picture.getvalue())  # last: where it is, its data are
