"""Figures of several runs in one."""

import json
import os

import numpy as np
import pytest

from robustrun.report import curves, figures, html, overlay
from robustrun.roles import Figure
from tests.report.test_view import found


@pytest.fixture
def runs(tmp_path):
    """Three finished runs: two share a figure, one of them has it with two curves; the third has another one."""
    x = np.array([0.0, 0.5, 1.0])
    drawn = {
        "none": {"certified": Figure("Certified", "l2 radius", "accuracy", {"sigma": (x, 0.5 - x / 4)})},
        "two": {
            "certified": Figure("Certified", "l2 radius", "accuracy", {"a": (x, 1 - x), "b": (x, 1 - x, x, x)}),
            "own": Figure("Own", series={"c": (x, x)}),
        },
        "other": {"else": Figure("Else", series={"d": (x, x)})},
    }
    for name, those in drawn.items():
        directory = tmp_path / "exp" / name
        directory.mkdir(parents=True)
        figures.write(those, directory / "figures")
        content = json.loads(found(0.5).content) | {"exp": "exp", "row": name, "overrides": [], "metrics": {}}
        (directory / "result.json").write_text(json.dumps(content))
    return {name: tmp_path / "exp" / name for name in drawn}


def test_what_is_shared_is_joined(runs):
    joined = overlay.overlay(runs)
    assert list(joined) == ["certified"]
    figure = joined["certified"]
    assert (figure.xlabel, figure.ylabel) == ("l2 radius", "accuracy")
    assert list(figure.series) == ["none", "two: a", "two: b"]
    assert figure.series["none"][1].tolist() == [0.5, 0.375, 0.25]
    assert len(figure.series["two: b"]) == 4
    assert overlay.overlay({"none": runs["none"], "other": runs["other"]}) == {}


def test_scales_and_kinds_are_kept(runs):
    x = np.array([1.0, 10.0])
    for name in ("none", "two"):
        points = Figure("Errors, one a point", "x", "y", {"c": (x, x)}, kind="scatter", xscale="log", yscale="log")
        field = Figure("A field", series={"c": (x, x)}, kind="custom", draw=lambda canvas: canvas.add_subplot())
        figures.write({"points": points, "field": field}, runs[name] / "figures")
    joined = overlay.overlay(runs)
    assert list(joined) == ["certified", "points"], "a field is no curve"
    figure = joined["points"]
    assert (figure.title, figure.kind, figure.xscale, figure.yscale) == ("Errors, one a point", "scatter", "log", "log")
    assert list(curves.pictures(runs["two"])) == ["field"]
    (runs["two"] / "figures" / figures.ABOUT).write_text('{"points": {"kind": "pie", "title": 3}, "field": [], "": 0}')
    assert curves.certified(runs["two"])["points"].kind == "line"
    (runs["two"] / "figures" / figures.ABOUT).write_text("[")
    assert curves.certified(runs["two"])["points"].title == "points"


def test_more_curves_than_can_be_told_apart_are_not_joined(runs):
    x = np.array([0.0, 1.0])
    for name in ("none", "two"):
        many = Figure("Many", series={str(i): (x, x + i) for i in range(9)})
        figures.write({"many": many}, runs[name] / "figures")
    assert list(overlay.overlay(runs)) == ["certified"]


def test_it_lies_beside_the_runs_as_picture_and_data(runs):
    target = overlay.write(runs)
    assert target.parent == runs["none"].parent / "comparisons"
    assert (target / "certified.png").read_bytes().startswith(b"\x89PNG")
    lines = (target / "certified.csv").read_text().splitlines()
    assert lines[0] == "series,l2 radius,accuracy,low,high"
    assert len(lines) == 1 + 9
    drawn = (target / "certified.png").stat().st_mtime_ns
    assert overlay.write(runs) == target
    assert (target / "certified.png").stat().st_mtime_ns == drawn, "nothing new, nothing drawn"
    later = drawn // 10**9 + 5
    os.utime(runs["two"] / "result.json", (later, later))
    overlay.write(runs)
    assert (target / "certified.png").stat().st_mtime_ns > drawn, "a row that was run again is drawn again"
    assert overlay.write({"one": runs["none"]}) is None


def test_an_empty_file_of_data_breaks_nothing(runs):
    (runs["two"] / "figures" / "own.csv").write_text("")
    assert curves.certified(runs["two"])["own"].series == {}
    assert list(overlay.overlay(runs)) == ["certified"]


def test_the_page_shows_comparisons(runs):
    listed = [type(found(0.5))(path / "result.json", (path / "result.json").read_text()) for path in runs.values()]
    text = html.page([], listed)
    assert "Comparisons" in text
    assert "Certified: none, two: a, two: b" in text
    assert "Comparisons" not in html.page([], listed[2:])
