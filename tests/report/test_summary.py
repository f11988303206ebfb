import io

import pytest
from rich.console import Console

from robustrun.report import summary
from robustrun.report.results import Result


def result(metrics):
    metrics = {f"a_rather_long_metric_{i}": 1.2345e-5 * (i + 1) for i in range(metrics)}
    intervals = {"x": 0.5, "x_low": 0.4, "x_high": 0.6}
    return Result(exp="e", metrics={**metrics, **intervals}, timings={"train": 12.34}, config_sha256="0" * 64)


def printed(table, width=160):
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


@pytest.mark.parametrize("metrics", [1, 14])
def test_a_comparison_is_readable_however_many_metrics(metrics):
    rows = [("first", result(metrics)), ("failed", None), ("third", result(metrics))]
    text = printed(summary.comparison(rows, "title"))
    assert "…" not in text
    for expected in ("first", "failed", "third", "1.234e-05", "0.5 [0.4, 0.6]", "12.3", "a rather long metric"):
        assert expected in " ".join(text.split())
    assert "x low" not in text, "the ends of an interval are shown with their metric"


def test_many_jobs_of_many_metrics_stand_below_each_other():
    rows = [(f"job {number}", result(14)) for number in range(40)]
    lines = printed(summary.comparison(rows, "title"), width=120).splitlines()
    assert sum("1.234e-05" in line for line in lines) == 7, "six jobs side by side at most"
    assert all(any(label in line for line in lines) for label, _ in rows), "no label is broken"


def test_one_job_stands_beside_the_paper():
    job = result(1).model_copy(update={"paper_metrics": {"x": 0.55}})
    text = printed(summary.single(job, "title"), width=80)
    assert "0.5 [0.4, 0.6]" in text
    assert "0.55" in text


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.0, "0"), (3.0, "3"), (0.123456, "0.1235"), (1e-9, "1e-09")]
)
def test_numbers_have_four_digits(value, shown):
    assert summary.number(value) == shown
