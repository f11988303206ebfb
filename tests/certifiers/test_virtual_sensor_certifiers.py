"""Certified errors of virtual sensors: ordered, honest about specifications, confirmed by ONNX and VNN-LIB."""

import json
import re

import numpy as np
import pytest
import torch

from robustrun.certifiers.sensor_error import SensorError, Specification
from robustrun.errors import ConfigError
from robustrun.models.mlp_regressor import MLPRegressor
from robustrun.report.figures import draw
from robustrun.runtime import Run
from robustrun.tasks.sensors import SensorPublic
from robustrun.trainers.recipe import Optimizer
from robustrun.trainers.regression import Provable

FAST = {"attack_steps": 10, "restarts": 2, "examples": 12, "batch_size": 6, "epsilon": 1.0}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    with Run.create(tmp_path_factory.mktemp("fit"), seed=0, device="cpu", precision="float32", threads=1) as run:
        task = SensorPublic()
        task.load(run)
        torch.manual_seed(0)
        model = MLPRegressor(task.spec, hidden=(12, 12))
        trainer = Provable(epochs=10, batch_size=64, optimizer=Optimizer(name="adam", lr=5e-3), validate_every=0)
        return task, trainer.fit(task, model, run)


def _certify(fitted, tmp_path, name="run", **changes):
    with Run.create(tmp_path / name, seed=0, device="cpu", precision="float32", threads=1) as run:
        return SensorError(**FAST | changes).certify(*fitted, run)


def test_errors_are_ordered_by_strength(fitted, tmp_path):
    methods = ("branch_and_bound", "milp", "lp", "alpha_crown", "intersection", "crown", "dual", "interval")
    reports = {m: _certify(fitted, tmp_path, m, method=m) for m in methods}
    certified = {m: r.examples["certified_error"] for m, r in reports.items()}
    for report in reports.values():
        e = report.examples
        assert (e["clean_error"] <= e["attacked_error"] + 1e-9).all()
        assert (e["attacked_error"] <= e["certified_error"] + 1e-9).all()
    exact = certified["milp"]
    assert certified["branch_and_bound"] == pytest.approx(exact, abs=2e-4)
    for tighter, looser in (("milp", "lp"), ("alpha_crown", "intersection"), ("intersection", "crown")):
        assert (certified[tighter] <= certified[looser] + 1e-4).all()
    for looser in ("dual", "interval"):
        assert (certified["intersection"] <= certified[looser] + 1e-12).all()
    assert reports["milp"].metrics["solved"] == 1
    none = _certify(fitted, tmp_path, "none", method="none")
    assert "certified_error" not in none.metrics


def test_figures_and_tables(fitted, tmp_path):
    report = _certify(fitted, tmp_path, examples=None)
    e, text = report.examples, report.files["errors_by_interval.csv"].decode()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    whole = next(r for r in rows if r[3] == "certified")
    assert float(whole[4]) == pytest.approx(e["certified_error"].mean(), abs=1e-5)
    high = (e["target"] >= 0.6) & (e["target"] <= 1)
    assert report.metrics["certified_error_inside"] == pytest.approx(e["certified_error"][high].mean())
    assert next(r for r in rows if r[0] == "0.6" and r[3] == "clean")[2] == str(high.sum())
    for name, figure in report.figures.items():
        draw(figure, tmp_path / f"{name}.png")


def test_counterexamples_are_real(fitted, tmp_path):
    trained = fitted[1]
    report = _certify(fitted, tmp_path)
    e = report.examples
    worst = torch.tensor(np.stack([e[f"worst_x{j}"] for j in range(10)], 1))
    with torch.no_grad():
        reached = trained.model.double()(worst).squeeze(1).numpy()
    trained.model.float()
    assert np.abs(reached - e["target"]) / e["target"] == pytest.approx(e["attacked_error"], abs=1e-9)


def test_specification_holds_is_violated_or_open(fitted, tmp_path):
    report = _certify(fitted, tmp_path)
    proven, reached = (report.examples[f"{k}_error"].max() for k in ("certified", "attacked"))
    for at_most, answer in (
        (proven + 1e-6, "holds"),
        (reached - 1e-6, "violated"),
        ((proven + reached) / 2, "unknown"),
    ):
        found = _certify(fitted, tmp_path, answer, spec=Specification(at_most=float(at_most)))
        verdict = json.loads(found.files["specification.json"])
        assert verdict["answer"] == answer
        assert found.metrics["spec_holds"] == (answer == "holds")
        assert found.metrics["spec_violated"] == (answer == "violated")
    broken = json.loads(_certify(fitted, tmp_path, "x", spec=Specification(at_most=0.01)).files["specification.json"])
    shown = broken["counterexample"]
    assert list(shown["readings"])[:2] == ["age", "sex"]
    assert len(shown["readings"]) == 10
    i = report.examples["index"].tolist().index(shown["index"])
    assert shown["readings"]["sex"] == report.examples["worst_x1"][i]
    assert abs(shown["predicted"] - shown["target"]) / shown["target"] == pytest.approx(shown["relative_error"])
    assert shown["relative_error"] > 0.01
    mean = _certify(fitted, tmp_path, "m", spec=Specification(at_most=float(proven), statistic="mean"))
    assert json.loads(mean.files["specification.json"])["answer"] == "holds"
    with pytest.raises(ValueError, match="is empty"):
        Specification(at_most=0.1, on=(0.6, 0.2))
    with pytest.raises(ConfigError, match="contains none"):
        _certify(fitted, tmp_path, "n", spec=Specification(at_most=0.1, on=(2.0, 3.0)))


def _property(text: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    """An independent, minimal reading of a property: the box, and the output's ends."""
    ends = {(op, int(j)): float(v) for op, j, v in re.findall(r"\(assert \((>=|<=) X_(\d+) (\S+)\)\)", text)}
    n = len(ends) // 2
    low, high = re.search(r"\(<= Y_0 ([^)]+)\)\) \(and \(>= Y_0 ([^)]+)\)\)", text).groups()
    return (
        np.array([ends[">=", j] for j in range(n)]),
        np.array([ends["<=", j] for j in range(n)]),
        float(low),
        float(high),
    )


@pytest.mark.parametrize("at_most", [None, 0.05])
def test_exported_properties_are_confirmed_by_onnxruntime(fitted, tmp_path, at_most):
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = None if at_most is None else Specification(at_most=at_most)
    report = _certify(fitted, tmp_path, export=8, spec=spec)
    session = onnxruntime.InferenceSession(report.files["properties/model.onnx"])
    instances = report.files["properties/instances.csv"].decode().split()
    assert len(instances) == 8
    rng = np.random.default_rng(0)
    refuted = 0
    for i, line in enumerate(instances):
        _, name, answer = line.split(",")
        lower, upper, low, high = _property(report.files[f"properties/{name}"].decode())
        points = rng.uniform(lower, upper, (500, len(lower)))
        points[:250] = np.where(rng.random((250, len(lower))) < 0.5, lower, upper)  # corners
        values = session.run(None, {"X": points.astype(np.float32)})[0][:, 0]
        if at_most is None or answer == "unsat":
            assert (values > low - 1e-6).all()
            assert (values < high + 1e-6).all()
        if answer == "sat":
            refuted += 1
            counter = np.array([[report.examples[f"worst_x{j}"][i] for j in range(10)]])
            assert (counter >= lower - 1e-12).all()
            assert (counter <= upper + 1e-12).all()
            value = session.run(None, {"X": counter.astype(np.float32)})[0].item()
            assert value <= low + 1e-6 or value >= high - 1e-6
    assert (refuted > 0) == (at_most is not None)


def test_l2_noise_and_clamping(fitted, tmp_path):
    box, ball = (_certify(fitted, tmp_path, n, norm=n).examples for n in ("linf", "l2"))
    assert (ball["certified_error"] <= box["certified_error"] + 1e-9).all()
    clamped = _certify(fitted, tmp_path, "clamp", clamp=True, epsilon=20.0).examples
    assert clamped["certified_upper"].max() <= 1
    assert clamped["certified_lower"].min() >= 0


def test_wrong_requests_are_refused(fitted, tmp_path):
    with pytest.raises(ConfigError, match="boxes only"):
        SensorError(norm="l2", method="milp")
    with pytest.raises(ConfigError, match="rising"):
        SensorError(bins=(0.5, 0.1))
    with pytest.raises(ConfigError, match="something to claim"):
        _certify(fitted, tmp_path, method="none", export=1)
