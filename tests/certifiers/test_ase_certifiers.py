import io
import json

import numpy as np
import pytest
from PIL import Image

from robustrun.certifiers.safe_exploration import SafeExploration
from robustrun.errors import ConfigError
from robustrun.models.tabular_agent import ConfidentAgent
from robustrun.report.figures import write
from robustrun.roles import Fitted
from robustrun.tasks.exploration import DiscretePlatformer, UnsafeGrid
from robustrun.trainers.exploration import AnalogousSafeExploration, IntervalEstimation


@pytest.fixture
def task(run):
    task = UnsafeGrid(map="small_islands", steps=1200)
    task.load(run)
    return task


def test_a_safe_exploration(task, run, tmp_path):
    fitted = AnalogousSafeExploration(trials=2).fit(task, ConfidentAgent(task.spec), run)
    report = SafeExploration(frames=12).certify(task, fitted, run)
    metrics = report.metrics
    assert metrics["unsafe_actions"] == metrics["unsafe_trial_rate"] == 0
    assert metrics["unsafe_trial_rate_high"] == pytest.approx(1 - 0.05 ** (1 / 2))
    claims = json.loads(report.files["certificate.json"])
    assert claims["chance of an unsafe decision, upper bound"] == pytest.approx(1 - 0.05 ** (1 / 2400))
    assert 0 < metrics["support_failure"] < 0.01
    assert claims["support lacks an outcome, union bound (if only tau were known)"] == 1
    assert metrics["suboptimal_low"] <= metrics["suboptimal"] <= metrics["suboptimal_high"] <= 1200
    assert 0 < metrics["regret"] < metrics["suboptimal"]
    arrays = np.load(io.BytesIO(report.files["certificate.npz"]))
    assert arrays["safe"].sum() / 2 == metrics["safe_pairs"]
    film = Image.open(io.BytesIO(report.files["figures/safe_set.gif"]))
    assert film.n_frames > 5
    write(report.figures, tmp_path)
    assert {"suboptimal.png", "safe_pairs.csv", "visits.png", "paths.png", "safe_set.png"} <= {
        f.name for f in tmp_path.iterdir()
    }
    x, mean, low, high = report.figures["safe_pairs"].series["mean, least and most of the trials"]
    assert (x[0], x[-1], mean[-1]) == (0.1, 1.2, metrics["safe_pairs"])
    assert (np.diff(mean) >= 0).all()
    assert (low <= high).all()


def test_an_unsafe_exploration(task, run):
    fitted = IntervalEstimation(trials=1).fit(task, ConfidentAgent(task.spec), run)
    report = SafeExploration().certify(task, fitted, run)
    assert report.metrics["unsafe_actions"] > 0
    assert report.metrics["unsafe_trial_rate_high"] == 1
    assert "safe_pairs" not in report.metrics
    assert "support_failure" not in report.metrics


def test_a_policy_without_trials(task, run):
    model = ConfidentAgent(task.spec)
    report = SafeExploration().certify(task, Fitted(model), run)
    assert report.metrics == {"optimality_gap": pytest.approx(0.242813 + 0.9**2, abs=0.5), "safe_pairs": 0}
    assert report.metrics["optimality_gap"] > 0.24


def test_trials_of_another_mdp_are_refused(task, run):
    fitted = AnalogousSafeExploration(trials=1).fit(task, ConfidentAgent(task.spec), run)
    other = DiscretePlatformer(level="short")
    other.load(run)
    with pytest.raises(ConfigError, match="289 states"):
        SafeExploration().certify(other, fitted, run)
