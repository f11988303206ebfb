"""The figures that several runs share, in one: certified accuracy against the radius of every row of a comparison."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from robustrun.report import curves
from robustrun.roles import Figure

_READABLE = 16  # curves in one picture


def overlay(runs: Mapping[str, Path]) -> dict[str, Figure]:
    """Every figure that at least two of the run directories (by label) have, with the curves of all that have it.

    Left out is what would have more curves than an eye can tell apart.
    """
    drawn = {label: curves.certified(directory) for label, directory in runs.items()}
    shared: dict[str, Figure] = {}
    for name in dict.fromkeys(name for figures in drawn.values() for name in figures):
        those = {label: figures[name] for label, figures in drawn.items() if name in figures}
        if len(those) < 2:
            continue
        if sum(len(figure.series) for figure in those.values()) > _READABLE:
            continue
        shared[name] = joined = replace(next(iter(those.values())), series={})
        for label, figure in those.items():
            for series, columns in figure.series.items():
                joined.series[label if len(figure.series) == 1 else f"{label}: {series}"] = columns
    return shared


def write(runs: Mapping[str, Path]) -> Path | None:
    """The shared figures, as PNG and as data, into a folder beside the runs; None if they share none.

    The folder's name follows from which runs they are: the same comparison is written to the same place.
    """
    from robustrun.report import figures

    shared = overlay(runs)
    if not shared:
        return None
    directories = [str(directory.absolute()) for directory in runs.values()]
    digest = hashlib.sha256("\n".join(directories).encode()).hexdigest()[:12]
    target = next(iter(runs.values())).parent / "comparisons" / digest
    pictures = [target / f"{name}.png" for name in shared]
    newest = max((directory / "result.json").stat().st_mtime for directory in runs.values())
    if not all(picture.is_file() and picture.stat().st_mtime >= newest for picture in pictures):
        target.parent.mkdir(exist_ok=True)
        figures.write(shared, target)
    return target


def comparisons(runs: Sequence) -> dict[str, dict[str, Path]]:
    """The rows of comparisons among `Found` runs: title -> (row -> run directory), the newest of each row."""
    groups: dict[str, dict[str, Path]] = {}
    for run in sorted(runs, key=lambda run: run.data.get("finished_at", "")):
        if run.data.get("row"):
            group = groups.setdefault(f"{run.data['exp']}, seed {run.data['seed']}", {})
            group[run.data["row"]] = run.path.parent
    return groups
