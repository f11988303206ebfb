"""Training for a metric: members side by side, selection, resume, and that it helps."""

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError
from robustrun.metric_node import MetricNode
from robustrun.models.single_score import MLPClassifier
from robustrun.runtime import Run
from robustrun.tasks.binary import TabularTask
from robustrun.trainers.metric import AdversarialPredictionTraining, CrossEntropyTraining, Solver, _Members

F2 = MetricNode(name="f_beta", beta=2)
FAST = Solver(tolerance=0.1, max_iterations=10)


def _task(run, limit=400):
    task = TabularTask(dataset="whitewine", split=0, limit=limit)
    task.load(run)
    return task


def _fit(trainer, run, limit=400, hidden=(20,)):
    task = _task(run, limit)
    torch.manual_seed(0)
    return trainer.fit(task, MLPClassifier(task.spec, hidden=list(hidden)), run)


def test_members_are_copies_side_by_side(run):
    task = _task(run)
    model = MLPClassifier(task.spec, hidden=[20])
    inputs = torch.randn(7, 11)
    one, three = _Members(model, 1), _Members(model, 3)
    torch.testing.assert_close(three(inputs), one(inputs).expand(3, 7))
    torch.testing.assert_close(three.penalties(), one.penalties().expand(3))
    assert three.weights(2).keys() == dict(model.named_parameters()).keys()


def test_each_penalty_trains_as_it_would_alone(tmp_path):
    states = []
    for number, penalties in enumerate(([0.0, 0.1], [0.0], [0.1])):
        with Run.create(tmp_path / str(number), seed=0, device="cpu", threads=1) as run:
            trainer = CrossEntropyTraining(metric=F2, epochs=1, penalties=penalties, lr=0.05)
            task = _task(run)
            torch.manual_seed(0)
            members = _fit_members(trainer, task, run)
            states.append([members.weights(i) for i in range(len(penalties))])
    for together, alone in zip(states[0], (states[1][0], states[2][0]), strict=True):
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)
    norms = [sum(v.square().sum() for v in s.values()) for s in states[0]]
    assert norms[1] < norms[0]


def _fit_members(trainer, task, run):
    kept = {}
    original = _Members.__init__

    def remember(self, *arguments):
        original(self, *arguments)
        kept["members"] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Members, "__init__", remember)
        trainer.fit(task, MLPClassifier(task.spec, hidden=[20]), run)
    return kept["members"]


def test_the_best_epoch_and_penalty_are_kept(run):
    trainer = AdversarialPredictionTraining(
        metric=F2, epochs=3, batch_size=50, lr=0.01, penalties=[0.0, 10.0], solver=FAST
    )
    fitted = _fit(trainer, run)
    values = [row["valid_metric"] for row in fitted.history]
    assert fitted.extra["penalty"] == 0.0
    assert fitted.extra["best_epoch"] == int(np.argmax(values)) + 1
    task = _task(run)
    batch = next(iter(task.loader("valid", 1000, run).epoch(0)))
    for state, expected in (("best", max(values)), ("last", None)):
        logits = fitted.at(state)(batch.inputs)
        value = F2.build()((logits[:, 1] >= logits[:, 0]).int().numpy(), batch.targets.numpy())
        assert expected is None or value == pytest.approx(expected)
    assert all("gap" in row for row in fitted.history)


def test_a_broken_off_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    trainer = AdversarialPredictionTraining(metric=F2, epochs=2, batch_size=50, penalties=[0.0, 0.01], solver=FAST)
    with Run.create(tmp_path / "whole", seed=0, device="cpu", threads=1) as run:
        whole = _fit(trainer, run)
    from robustrun.runtime import TrainingLoop

    original, calls = TrainingLoop.minimize, []

    def die(loop, loss):
        original(loop, loss)
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "minimize", die)
        with pytest.raises(KeyboardInterrupt), Run.create(tmp_path / "cut", seed=0, device="cpu", threads=1) as run:
            _fit(trainer, run)
    with Run.create(tmp_path / "cut", seed=0, device="cpu", threads=1) as run:
        resumed = _fit(trainer, run)
    assert resumed.history == whole.history
    for state in ("last", "best"):
        for name, value in whole.states[state].items():
            assert torch.equal(value, resumed.states[state][name])


def test_f2_training_beats_cross_entropy_in_f2(tmp_path):
    values = []
    trainers = (
        CrossEntropyTraining(metric=F2, epochs=5, lr=2e-2),
        AdversarialPredictionTraining(metric=F2, epochs=3, batch_size=50, solver=FAST),
    )
    for number, trainer in enumerate(trainers):
        with Run.create(tmp_path / str(number), seed=0, device="cpu", threads=1) as run:
            fitted = _fit(trainer, run, limit=1000)
            batch = next(iter(_task(run).loader("test", 2000, run).epoch(0)))
            logits = fitted.at("best")(batch.inputs)
            values.append(F2.build()((logits[:, 1] >= logits[:, 0]).int().numpy(), batch.targets.numpy()))
    assert values[1] > values[0] + 0.05


def test_wrong_requests(run):
    with pytest.raises(ConfigError, match="penalties is empty"):
        CrossEntropyTraining(metric=F2, penalties=[])
    with pytest.raises(ConfigError, match="batch normalisation"):
        _Members(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 2)
