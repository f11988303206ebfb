"""PGD, AutoAttack and the best-and-last certifier on models whose robust accuracy is known."""

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.autoattack import AutoAttack
from robustrun.certifiers.best_last import BestLast, curve_metrics, learning_curves
from robustrun.certifiers.pgd import PGD
from robustrun.data import Arrays, Split
from robustrun.errors import Stopped
from robustrun.roles import ClassificationSpec, Fitted
from robustrun.runtime import Run
from robustrun.tasks.images import InMemory

EPSILON = 0.1


class Greys(InMemory):
    """Forty images of one grey, 1 x 4 x 4, from 0 to 1; label 1 if brighter than one half."""

    def __init__(self, count=40):
        super().__init__([], 0, None, None)
        self.spec = ClassificationSpec((1, 4, 4), 4)
        images = torch.linspace(0, 255, count).round().to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
        split = Split(images.contiguous(), (images[:, 0, 0, 0] > 127).long())
        self._take(Arrays(split, split))
        self.grey = images[:, 0, 0, 0].numpy() / 255

    def robust(self, epsilon):
        """Examples that no perturbation of every pixel by epsilon takes across one half."""
        return np.abs(self.grey - 0.5) > epsilon


class Brightness(nn.Module):
    """Class 1 if the mean brightness is above `threshold`; classes 2 and 3 never."""

    def __init__(self, threshold=0.5):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, inputs):
        score = 5 * (inputs.flatten(1).mean(1) - self.threshold)
        return torch.stack((-score, score, score.new_full((len(score),), -9.0), score.new_full((len(score),), -9.5)), 1)


def attack(**options):
    return AutoAttack(epsilon=EPSILON, steps=10, queries=50, **options)


def test_autoattack_finds_exactly_what_can_be_broken(run):
    task = Greys()
    report = attack(batch_size=16).certify(task, Fitted(Brightness()), run)
    robust = task.robust(EPSILON)
    assert np.array_equal(report.examples["robust"], robust)
    assert report.metrics["clean_accuracy"] == 1.0
    assert report.metrics["robust_accuracy"] == pytest.approx(robust.mean())
    assert report.metrics["robust_accuracy_low"] < robust.mean() < report.metrics["robust_accuracy_high"]
    after = [report.metrics[f"{name}_accuracy"] for name in ("apgd_ce", "apgd_t", "fab_t", "square")]
    assert after == sorted(after, reverse=True)
    assert after[-1] == report.metrics["robust_accuracy"]
    assert report.counts["examples"] == 40
    assert report.counts["forward_passes"] > report.counts["backward_passes"] > 0


def test_what_is_misclassified_unperturbed_counts_as_broken(run):
    task = Greys()
    report = attack().certify(task, Fitted(Brightness(0.7)), run)
    wrong = ~report.examples["correct"]
    assert wrong.sum() == ((task.grey > 0.5) & (task.grey < 0.7)).sum()
    assert (report.examples["broken_by"][wrong] == -1).all()
    assert not report.examples["robust"][wrong].any()
    assert report.metrics["apgd_ce_accuracy"] <= report.metrics["clean_accuracy"]


def test_autoattack_never_reports_more_robustness_than_pgd(run, tmp_path):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    strong = attack().certify(Greys(), Fitted(model), run)
    with Run.create(tmp_path / "other", seed=0, device="cpu", precision="float32", threads=1) as other:
        weak = PGD(epsilon=EPSILON, alpha=EPSILON / 4, steps=10, restarts=1).certify(Greys(), Fitted(model), other)
    assert strong.metrics["clean_accuracy"] == weak.metrics["clean_accuracy"]
    assert strong.metrics["robust_accuracy"] <= weak.metrics["robust_accuracy"]


def test_an_interrupted_autoattack_ends_with_the_same_records(tmp_path):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    certifier, task = attack(batch_size=8), Greys()

    def surroundings(name):
        return Run.create(tmp_path / name, seed=0, device="cpu", precision="float32", threads=1)

    with surroundings("whole") as run:
        whole = certifier.certify(task, Fitted(model), run)
    judged = []

    def stop_after_two(model, batch, run, judge=certifier.judge):
        if len(judged) == 2:
            raise Stopped("asked to")
        judged.append(batch.indices.tolist())
        return judge(model, batch, run)

    certifier.judge = stop_after_two
    with pytest.raises(Stopped), surroundings("cut") as run:
        certifier.certify(task, Fitted(model), run)
    del certifier.judge
    with surroundings("cut") as run:
        resumed = certifier.certify(task, Fitted(model), run)
    assert len(judged) == 2
    assert resumed.metrics == whole.metrics
    assert resumed.counts == whole.counts
    assert all(np.array_equal(resumed.examples[name], column) for name, column in whole.examples.items())


# -------------------------------------------------------------------------------------------- best and last


def curve(errors, **columns):
    rows = [{"test_robust_accuracy": 1 - e, "test_clean_accuracy": 0.9, "test_robust_loss": 2 + e} for e in errors]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def test_best_final_and_difference_of_a_known_curve():
    metrics = curve_metrics(curve([0.50, 0.45, 0.47, 0.48, 0.49, 0.50, 0.51]))
    assert metrics["error_best"] == pytest.approx(0.45)
    assert metrics["error_best_epoch"] == 1
    assert metrics["error_final"] == pytest.approx(0.49)
    assert metrics["error_final_std"] == pytest.approx(0.014142, abs=1e-6)
    assert metrics["error_difference"] == pytest.approx(0.04)


def test_selection_takes_the_first_of_equals_and_never_looks_at_the_test_split():
    valid = [0.3, 0.6, 0.6, 0.5]
    first = curve_metrics(curve([0.5, 0.4, 0.3, 0.2], valid_robust_accuracy=valid))
    assert (first["error_selected_epoch"], first["error_selected"]) == (1, pytest.approx(0.4))
    other = curve_metrics(curve([0.9, 0.1, 0.8, 0.7], valid_robust_accuracy=valid))
    assert other["error_selected_epoch"] == 1


def test_epochs_that_were_not_measured_are_left_out():
    rows = [{}, *curve([0.5]), {}, *curve([0.4]), {}, *curve([0.6])]
    metrics = curve_metrics(rows)
    assert metrics["error_best_epoch"] == 3
    assert metrics["error_final"] == pytest.approx(0.5)
    assert learning_curves(rows)["learning_curve"].series["test, robust"][0].tolist() == [2, 4, 6]


def test_without_robust_measurements_clean_errors_are_compared():
    rows = [{"test_clean_accuracy": a, "test_clean_loss": 1.0} for a in (0.5, 0.9, 0.8)]
    assert curve_metrics(rows)["error_best"] == pytest.approx(0.1)
    assert curve_metrics([{"loss": 1.0}]) == {}


def test_both_states_are_attacked_and_the_gap_is_between_them(run):
    task, model = Greys(), Brightness()
    states = {"best": Brightness(0.5).state_dict(), "last": Brightness(0.7).state_dict()}
    history = curve([0.3, 0.2, 0.4], train_accuracy=[0.2, 0.5, 0.9], loss=[2.0, 1.0, 0.5])
    certifier = BestLast(epsilon=EPSILON, alpha=EPSILON, steps=3, restarts=1, states=("best", "last"))
    report = certifier.certify(task, Fitted(model, states, history), run)
    assert report.metrics["best_robust_accuracy"] == pytest.approx(task.robust(EPSILON).mean())
    lost = report.metrics["best_robust_accuracy"] - report.metrics["last_robust_accuracy"]
    assert report.metrics["robust_gap"] == lost > 0
    assert report.metrics["train_error_final"] == pytest.approx(1 - np.mean([0.2, 0.5, 0.9]))
    assert set(report.figures) == {"learning_curve", "learning_curve_loss", "accuracy_by_steps"}
    for state, (steps, accuracy) in report.figures["accuracy_by_steps"].series.items():
        assert steps.tolist() == [0, 1, 2, 3]
        assert accuracy[-1] == pytest.approx(report.metrics[f"{state}_robust_accuracy"])
        assert accuracy[0] <= report.metrics[f"{state}_clean_accuracy"]
        assert (np.diff(accuracy) <= 0).all()
    assert report.figures["learning_curve"].series["test, robust"][1].tolist() == pytest.approx([30, 20, 40])


def test_without_a_best_state_the_last_is_attacked(run):
    certifier = BestLast(epsilon=EPSILON, alpha=EPSILON, steps=3, restarts=1, states=("best", "last"))
    report = certifier.certify(Greys(), Fitted(Brightness()), run)
    assert report.metrics["robust_accuracy"] < report.metrics["clean_accuracy"]
    assert "robust_gap" not in report.metrics
    assert list(report.figures) == ["accuracy_by_steps"]
