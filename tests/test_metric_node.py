"""Metrics as configs and on the command line."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustrun.errors import ConfigError
from robustrun.methods.adversarial_prediction import f_beta, precision, recall
from robustrun.metric_node import MetricNode


def test_builds_what_it_says():
    assert MetricNode(name="f_beta", beta=2).build() == f_beta(2)
    assert MetricNode(name="precision_given_recall", threshold=0.7).build() == precision().subject_to(recall() >= 0.7)
    assert MetricNode(name="expression", formula="tp/pp").build() == precision()


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"name": "f_betta"}, "did you mean 'f_beta'"),
        ({"name": "recall", "beta": 2}, "does not take it"),
        ({"name": "expression"}, "formula must be given"),
        ({"name": "expression", "formula": "tp/(pp+fp"}, "expected"),
        ({"name": "precision_given_recall", "threshold": 1.5}, "cannot be met"),
        ({"name": "expression", "formula": "tp/pp", "special_case_positive": False}, "special_case_positive"),
    ],
)
def test_refusals(node, says):
    with pytest.raises(ConfigError, match=says):
        MetricNode(**node)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_any_formula_is_a_metric_or_a_config_error(formula):
    with contextlib.suppress(ConfigError):
        MetricNode(name="expression", formula=formula)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["metric.beta=-1"], "metric.beta"),
        (["metric=f_betta"], "did you mean 'f_beta'"),
        (["metric=expression", "metric.formula='tp*tn/all'"], "multiplies two cells"),
        (["metric=expression"], "metric.formula must be given"),
        (["metric=f_beta(2)"], "quote the value"),
        (["task=cifar10"], "cifar10"),
        (["trainer.lr=fast"], "trainer.lr"),
        (['metric="tp/(pp+fp)"'], "divides by a cell"),
    ],
)
def test_wrong_commands_are_one_sentence(cli, arguments, says):
    done = cli("+exp=ap_perf_table", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
