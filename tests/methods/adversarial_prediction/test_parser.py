"""Metrics as text: what they mean, what they refuse, and that nothing else ever happens."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustrun.errors import ConfigError
from robustrun.methods.adversarial_prediction import (
    NAMED,
    Metric,
    UnsupportedMetric,
    f_beta,
    kappa,
    parse_metric,
    precision,
    precision_given_recall,
    recall,
)


def _same(left: Metric, right: Metric, n: int = 6) -> bool:
    pairs = zip(left.coefficients(n), right.coefficients(n), strict=True)
    return all(np.allclose(x, y, atol=1e-12) for x, y in pairs)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_metric_by_its_name(name):
    parsed, named = parse_metric(name), NAMED[name]()
    assert _same(parsed, named)
    assert len(parsed.constraints) == len(named.constraints)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("2*tp/(2*tp+fp+fn)", f_beta(1)),
        ("  2 * TP / (AP + PP) ", f_beta(1)),
        ("f_beta(2)", f_beta(2)),
        ("F2", f_beta(2)),
        ("fbeta(0.5)", f_beta(0.5)),
        ("(1 + 2^2)*tp/(2**2*ap + pp)", f_beta(2)),
        ("tp/pp", precision()),
        ("-(-tp)/+pp", precision()),
        ("((tp+tn)/all - (ap*pp+an*pn)/all**2)/(1 - (ap*pp+an*pn)/all**2)", kappa()),
        ("tp*all/(pp*all)", precision()),
        ("tp*pp**-1", precision()),
        (".5*precision + 5e-1*precision", precision()),
    ],
)
def test_meaning(text, metric):
    assert _same(parse_metric(text), metric)


@pytest.mark.parametrize("word", ["st", "s.t.", "subject to", "ST"])
def test_constraints(word):
    metric = parse_metric(f"precision {word} recall >= 0.8")
    assert metric == precision_given_recall(0.8)
    two = parse_metric(f"precision {word} tp/ap >= 0.8 and specificity >= 0.5")
    assert [c.threshold for c in two.constraints] == [0.8, 0.5]
    assert _same(two.constraints[0].metric, recall())
    assert parse_metric("precision_given_recall(0.7)").constraints[0].threshold == 0.7


def test_the_text_of_a_metric_parses_to_itself():
    for factory in NAMED.values():
        metric = factory()
        again = parse_metric(str(metric.expression))
        assert _same(again, metric)


def test_special_cases_can_be_forced_and_refused():
    assert parse_metric("accuracy", special_case_positive=True).value(0, 0, 3, 5) == 0.0
    with pytest.raises(UnsupportedMetric, match="special_case_positive"):
        parse_metric("2*tp/(2*tp+fp+fn)", special_case_positive=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a number or a name"),
        ("presicion", "did you mean 'precision'"),
        ("__import__('os')", "unexpected"),
        ("tp.real", "unexpected '.'"),
        ("exec(tp)", "unknown name 'exec'"),
        ("precision recall", "unexpected 'recall'"),
        ("precision >= 0.8", "follows 'st'"),
        ("precision st recall", "expected '>='"),
        ("precision st recall >= tp", "expected a number"),
        ("precision st recall >= 2", "cannot be met"),
        ("f_beta(1, 2)", "at most 1"),
        ("f_beta(tp)", "expected a number"),
        ("f_beta(-1)", "beta"),
        ("2*precision_given_recall(0.7)", "has constraints"),
        ("(tp", "expected '\\)'"),
        ("2/(1/precision + 1/recall)", "harmonic mean"),
        ("tp*tn/sqrt(ap*pp)", "multiplies two cells"),
        ("ap/all", "does not depend"),
        ("1e999*tp/all", "finite"),
        ("9**9**9**9*tp/all", "undefined"),
        ("tp/(pp-pp)", "undefined"),
        ("(" * 100 + "tp" + ")" * 100, "too deeply"),
        ("tp" * 400, "at most 500"),
        (None, "as text"),
    ],
)
def test_refusals_say_what_is_wrong(text, says):
    with pytest.raises(UnsupportedMetric, match=says):
        parse_metric(text)


PIECES = [
    *("tp", "pp", "ap", "all", "f_beta(2)", "sqrt(", "**", "st", ">=", "0.5", "1e308", "0", "precision"),
    *("import", "lambda", "_", ".", "'", "\\", "\n", "é", "٣", "\x00", "[", "=", "!", "1_0", "0x1"),
]


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)))
@example("tp/(0*tp)")
@example("(0-1)**0.5*tp")
@example("-" * 400 + "tp/all")
@example("tp/all" + "+tp/all" * 70)
def test_any_text_is_a_metric_or_a_config_error(text):
    try:
        metric = parse_metric(text)
    except ConfigError:
        return
    a, b = metric.coefficients(7)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
