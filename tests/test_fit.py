from typing import Any

from torch import nn

from robustrun.fit import misfit
from robustrun.roles import (
    Certifier,
    ClassificationSpec,
    ClassificationTask,
    Fitted,
    LinearClassifier,
    MDPSpec,
    MDPTask,
    Model,
    Report,
    Task,
    Trainer,
)
from robustrun.runtime import Run


class Images(ClassificationTask):
    pass


class Maze(MDPTask):
    pass


class Network(nn.Module):
    def __init__(self, spec: ClassificationSpec):
        super().__init__()


class Linear(LinearClassifier):
    def __init__(self, spec: ClassificationSpec):
        super().__init__()


class Table(nn.Module):
    def __init__(self, spec: MDPSpec):
        super().__init__()


def factory(spec: ClassificationSpec) -> nn.Module:
    return nn.Linear(1, 1)


class Sgd(Trainer):
    def fit(self, task: ClassificationTask, model: nn.Module, run: Run) -> Fitted: ...


class Nothing(Trainer):
    def fit(self, task: Task, model: Model, run: Run) -> Fitted: ...


class ClosedForm(Trainer):
    def fit(self, task: ClassificationTask, model: LinearClassifier, run: Run) -> Fitted: ...


class Attack(Certifier):
    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module], run: Run) -> Report: ...


class Flips(Certifier):
    def certify(self, task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> Report: ...


class Either(Certifier):
    def certify(self, task: ClassificationTask | MDPTask, fitted: Fitted, run: Run) -> Report: ...


class Anything(Certifier):
    def certify(self, task: Any, fitted: Fitted[Any], run: Run) -> Report: ...


def blame(*quadruple):
    wrong = misfit(*quadruple)
    return wrong and wrong[:2]


def test_what_fits():
    assert misfit(Images, Network, Sgd, Attack) is None
    assert misfit(Images, factory, Sgd, Attack) is None
    assert misfit(Images, Linear, ClosedForm, Flips) is None
    assert misfit(Images, Linear, Sgd, Attack) is None  # a linear classifier is a module
    assert misfit(Maze, Table, Nothing, Either) is None
    assert misfit(Images, Network, Nothing, Anything) is None


def test_what_does_not():
    assert blame(Maze, Network, Nothing, Either) == ("model", "task")
    assert blame(Maze, Table, Sgd, Either) == ("trainer", "task")
    assert blame(Images, Network, ClosedForm, Attack) == ("trainer", "model")
    assert blame(Images, Network, Sgd, Flips) == ("certifier", "model")
    assert blame(Maze, Table, Nothing, Attack) == ("certifier", "task")


def test_traits_that_annotations_do_not_tell(monkeypatch):
    assert misfit(Images, Network, Sgd, Attack) is None
    monkeypatch.setattr(Sgd, "differentiates_twice", True)
    assert misfit(Images, Network, Sgd, Attack) is None
    monkeypatch.setattr(Network, "differentiable_twice", False, raising=False)
    assert blame(Images, Network, Sgd, Attack) == ("trainer", "model")
    monkeypatch.setattr(Flips, "closed_form", True)
    assert blame(Images, Linear, Sgd, Flips) == ("trainer", "certifier")
    monkeypatch.setattr(Sgd, "closed_form", True)
    assert misfit(Images, Linear, Sgd, Flips) is None


def test_the_reason_is_readable():
    _, _, why = misfit(Maze, Table, Nothing, Attack)
    assert why == "it works on a ClassificationTask, and the task is a MDPTask"


def test_a_classifier_behind_an_api_is_only_for_what_asks_queries():
    """Whatever would attack or train through it is refused when the job is composed, not when it runs."""
    from robustrun.certifiers.accuracy import Accuracy
    from robustrun.certifiers.autoattack import AutoAttack
    from robustrun.certifiers.pgd import PGD
    from robustrun.certifiers.smoothing import Smoothing
    from robustrun.models.queried import Queried
    from robustrun.trainers.denoiser import DenoiserTraining
    from robustrun.trainers.ready import NoTraining
    from robustrun.trainers.supervised import Standard

    for trainer in (NoTraining, DenoiserTraining):
        assert misfit(Images, Queried, trainer, Smoothing) is None
    for certifier in (PGD, AutoAttack, Accuracy):
        axis, other, why = misfit(Images, Queried, NoTraining, certifier)
        assert (axis, other) == ("certifier", "model")
        assert "QueriedClassifier" in why
    assert misfit(Images, Queried, Standard, Smoothing)[:2] == ("trainer", "model")
