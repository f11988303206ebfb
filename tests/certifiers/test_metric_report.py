"""The metric's report: figures, intervals, threshold, comparison with another run."""

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.metric import MetricReport
from robustrun.errors import ConfigError
from robustrun.metric_node import MetricNode
from robustrun.roles import Fitted
from robustrun.tasks.binary import TabularTask

F2 = MetricNode(name="f_beta", beta=2)


class _Alcohol(nn.Module):
    """Good wine is strong wine: a score from one feature."""

    def forward(self, inputs):
        score = inputs[:, 10] - 11.5
        return torch.stack((torch.zeros_like(score), score), 1)


@pytest.fixture
def task(run):
    task = TabularTask(dataset="whitewine", split=0)
    task.load(run)
    return task


def test_metrics_of_a_known_model(task, run):
    report = MetricReport(metric=F2).certify(task, Fitted(_Alcohol()), run)
    batch = next(iter(task.loader("test", 2000, run).epoch(0)))
    guess, labels = (batch.inputs[:, 10] >= 11.5).int().numpy(), batch.targets.numpy()
    assert report.metrics["metric"] == pytest.approx(F2.build()(guess, labels))
    assert report.metrics["metric"] == report.metrics["f2"]
    assert report.metrics["accuracy"] == pytest.approx((guess == labels).mean())
    assert report.metrics["threshold"] < 0
    assert report.metrics["tuned"] > report.metrics["metric"] + 0.05
    for name in ("metric", "tuned", "recall", "precision_at_recall_0.8"):
        assert report.metrics[f"{name}_low"] < report.metrics[name] < report.metrics[f"{name}_high"]
    assert report.counts == {"examples": 1469, "positives": int(labels.sum())}
    np.testing.assert_array_equal(report.examples["predicted"], guess)
    assert set(report.figures) == {"precision_recall", "threshold"}


def test_constraints_are_reported(task, run):
    node = MetricNode(name="expression", formula="precision st recall >= 0.8")
    report = MetricReport(metric=node, beside=["recall"]).certify(task, Fitted(_Alcohol()), run)
    assert report.metrics["constraint_1"] == report.metrics["recall"]


def test_without_validation_nothing_is_tuned(run):
    task = TabularTask(dataset="whitewine", split=0, validation=0.0)
    task.load(run)
    report = MetricReport(metric=F2).certify(task, Fitted(_Alcohol()), run)
    assert not {"tuned", "threshold"} & set(report.metrics)


def test_a_typing_error_is_named():
    with pytest.raises(ConfigError, match="did you mean 'recall'"):
        MetricReport(metric=F2, beside=["recal"])


def test_against_another_run(cli, tmp_path):
    small = ["trainer.epochs=1", "task.limit=300", "trainer.batch_size=50", "trainer.penalties=[0]"]
    quick = [*small, "trainer.solver.max_iterations=10", "metric.beta=2"]
    done = cli(
        "+exp=ap_perf_gain", *quick, "needs.cross_entropy='ap_perf_table trainer=cross_entropy_quick trainer.epochs=1'"
    )
    assert done.returncode == 0, done.stderr
    import json

    found = list((tmp_path / "outputs" / "ap_perf_gain").glob("*/result.json"))
    metrics = json.loads(found[0].read_text())["metrics"]
    assert metrics["gain_low"] <= metrics["gain"] <= metrics["gain_high"]
    assert "gain_on_tuned" in metrics
