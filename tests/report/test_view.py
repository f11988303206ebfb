"""How a row is judged, and how tables are written in each format."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest

from robustrun.report import render
from robustrun.report.index import Found
from robustrun.report.tables import Table
from robustrun.report.view import TableView, row_view

TABLE = Table.model_validate(
    {
        "caption": "A_1 & 50%",
        "source": "Table 1",
        "columns": {
            "accuracy": {"heading": "clean", "unit": "%", "better": "higher", "tolerance": 1.0},
            "timings.train": {"heading": "train", "unit": "min", "better": "lower", "tolerance": 2},
        },
        "rows": {
            "a": {
                "label": "a | b",
                "overrides": ["+exp=x"],
                "seeds": [0, 1],
                "paper": {"accuracy": 50, "timings.train": "?"},
            },
            "b": {"label": "b", "overrides": ["+exp=y"], "paper": {"accuracy": [86.2, 0.7], "timings.train": 2}},
        },
    }
)


def found(accuracy, seed=0, train=60.0):
    result = {
        "metrics": {"accuracy": accuracy}, "timings": {"train": train}, "counts": {}, "seed": seed,
        "env": {"device": "a CPU", "git_commit": "0123456789abcdef", "git_dirty": True},
    }  # fmt: skip
    return Found(Path(f"/outputs/x/{seed}/result.json"), json.dumps(result))


def view(runs_a, runs_b=(), reduced=()):
    rows = [
        row_view(id_, TABLE.rows[id_], TABLE.columns, runs, reduced=bool(reduced))
        for id_, runs in (("a", runs_a), ("b", runs_b))
    ]
    return TableView("toy.one", TABLE, rows, reduced)


def test_mean_and_deviation_over_seeds():
    cell = view([found(0.49, 0), found(0.52, 1)]).rows[0].cells["accuracy"]
    assert cell.mean == pytest.approx(50.5)
    assert cell.std == pytest.approx(statistics.stdev([49, 52]))
    assert cell.verdict == "within"


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.862, "within"), (0.80, "worse"), (0.9, "better")])
def test_a_number_is_judged_by_tolerance_and_direction(accuracy, verdict):
    row = view([], [found(accuracy)]).rows[1]
    assert row.cells["accuracy"].verdict == verdict
    assert row.status == "done"


def test_less_is_better_where_it_says_so():
    assert view([], [found(0.9, train=600.0)]).rows[1].cells["timings.train"].verdict == "worse"
    assert view([], [found(0.9, train=60.0)]).rows[1].cells["timings.train"].verdict == "within"


def test_what_is_not_judged():
    assert view([found(0.5)]).rows[0].status == "1 of 2 seeds"
    assert view([found(0.5)]).rows[0].cells["accuracy"].verdict == ""
    assert view([], [found(0.862)], reduced=["trainer.epochs=1"]).rows[1].cells["accuracy"].verdict == ""
    assert view([], [found(None)]).rows[1].cells["accuracy"].mean is None
    assert view([]).rows[0].status == "missing"


def test_a_metric_that_no_run_reports():
    row = row_view("b", TABLE.rows["b"], {"acuracy": TABLE.columns["accuracy"]}, [found(0.5)])
    assert "reports no 'acuracy'; did you mean 'accuracy'? (it reports: accuracy)" in row.error


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (None, None, "-"), (0.0, None, "0"), (97.777, None, "97.78"), (474.5, None, "474.5"), (1077.3, None, "1077"),
        (12480.0, None, "12480"), (3.2e7, None, "3.2e+07"), (-0.5, None, "-0.50"), (225.0, None, "225"),
        (0.0084451, None, "0.008445"),
        (12480.0, 11573.5, "12480 ± 11574"), (513.41, 22.59, "513 ± 23"), (45.32, 0.05, "45.32 ± 0.05"),
        (0.0212, 0.01, "0.021 ± 0.010"), (45.3, 0.0, "45.30 ± 0.00"), (3e7, 1e5, "3e+07 ± 1e+05"),
    ],
)  # fmt: skip
def test_numbers_are_as_long_as_they_are_known(value, std, text):
    assert render.number(value, std) == text


def test_a_metric_that_other_rows_report_is_no_error():
    row = row_view("b", TABLE.rows["b"], {"acuracy": TABLE.columns["accuracy"]}, [found(0.5)], elsewhere={"acuracy"})
    assert (row.error, row.cells["acuracy"].mean) == ("", None)
    assert found(0.5).reports("accuracy")
    assert not found(0.5).reports("acuracy")


def test_terminal():
    text = render.rich(view([found(0.49, 0), found(0.52, 1)], [found(0.8)]))
    assert "50.5 ± 2.1 ✓" in text
    assert "80 ▼" in text
    assert "86.20 ± 0.70" in text
    assert "a CPU, commit 0123456789+" in text
    assert render.LEGEND in text


def test_markdown():
    text = render.markdown(view([found(0.49, 0), found(0.51, 1)]))
    assert "| a \\| b | 50.0 ± 1.4 ✓ | 50 | 1.00 ± 0.00 | ? | done |" in text


def test_csv():
    lines = list(csv.DictReader(io.StringIO(render.comma_separated(view([found(0.49, 0), found(0.51, 1)])))))
    assert [line["status"] for line in lines] == ["done", "missing"]
    assert float(lines[0]["accuracy"]) == pytest.approx(50)
    assert lines[0]["accuracy_verdict"] == "within"
    assert lines[1]["accuracy"] == ""
    assert lines[1]["accuracy_paper"] == "86.2"


def test_latex_escapes_and_balances():
    text = render.latex(view([found(0.49, 0), found(0.51, 1)], reduced=["trainer.epochs=1"]))
    assert r"A\_1 \& 50\%" in text
    assert r"50.0 $\pm$ 1.4 & 50" in text
    assert "REDUCED: trainer.epochs=1" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}


def test_json():
    (table,) = json.loads(render.jsons([view([found(0.49, 0), found(0.51, 1)])]))
    assert table["rows"][0]["cells"]["accuracy"]["mean"] == pytest.approx(50)
    assert table["rows"][0]["runs"][0]["where"] == "a CPU, commit 0123456789+"
    assert table["rows"][1]["status"] == "missing"
