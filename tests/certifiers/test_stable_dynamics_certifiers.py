"""Certifiers of dynamics: known systems are judged as they deserve."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustrun.certifiers.dynamics_figures import Film
from robustrun.certifiers.stability import Stability
from robustrun.certifiers.video_stability import VideoStability
from robustrun.methods.dynamics import FreeField, LatentVideo, RestMap, VectorField
from robustrun.methods.lyapunov import StableDynamics
from robustrun.models.dynamics import stable_dynamics, stable_map
from robustrun.models.latent_video import ConvolutionalVideo
from robustrun.models.lyapunov_parts import FieldConfig, LyapunovConfig
from robustrun.report.figures import draw
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.pendulum import Pendulum, RandomField
from robustrun.tasks.video import Texture
from robustrun.trainers.dynamics import LatentVideoTrainer, OneStep

FEW = {"starts": 6, "steps": 150, "far_steps": 20, "attack_starts": 200, "attack_steps": 5, "film": 12, "times": [1.0]}
SMOOTH = LyapunovConfig(hidden=(16, 16), epsilon=0.05, centred=True, quadratic=True)


@pytest.fixture
def pendulum(run):
    task = Pendulum(links=1)
    task.load(run)
    return task


class Truth(VectorField):
    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, x):
        return self.task.derivative(x)

    def __deepcopy__(self, memo):
        return self


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.tensor(matrix))

    def forward(self, x):
        return x @ self.matrix.T


def test_the_true_system_has_no_error(run, pendulum):
    report = Stability(**FEW).certify(pendulum, Fitted(Truth(pendulum)), run)
    assert report.metrics["error_1s"] < 1e-20
    assert report.metrics["derivative_mse"] < 1e-8
    assert report.metrics["rest_error_end"] > 1e-3
    assert "attack_violation" not in report.metrics


def test_a_model_at_rest_errs_like_rest(run, pendulum):
    report = Stability(**FEW).certify(pendulum, Fitted(RestMap()), run)
    assert report.metrics["error_mean"] > 0
    assert report.metrics["far_norm"] == 0
    again = Stability(**FEW | {"times": [1.49]}).certify(pendulum, Fitted(RestMap()), run)
    assert again.metrics["error_1.49s"] == pytest.approx(report.metrics["rest_error_end"], rel=0.2)


def test_stable_model_passes_every_check(run, pendulum, tmp_path):
    model = stable_dynamics(pendulum.spec, hidden=[16], lyapunov=SMOOTH, alpha=0.2)
    report = Stability(**FEW).certify(pendulum, Fitted(model), run)
    metrics = report.metrics
    assert metrics["attack_violation"] <= 1e-12
    assert metrics["v_rise_fraction"] == 0
    assert metrics["v_bound_excess"] <= 1e-9
    assert metrics["proved_fraction"] == pytest.approx(1.0)
    assert metrics["non_finite_fraction"] == 0
    statement = json.loads(report.files["stability.json"])
    assert statement["origin_is_the_only_equilibrium_of_v_by_construction"]
    assert statement["v_at_zero"] == statement["gradient_at_zero"] == 0
    assert statement["convexity_violation"] <= 1e-12
    assert statement["decay_rate"] == 0.2
    assert statement["overshoot"] > 1
    assert next(model.parameters()).dtype == torch.float32, "the fitted model itself is left as it is"
    # The figures can be drawn and the film be read.
    assert set(report.figures) == {"error", "lyapunov", "field", "rollout"}
    for name, figure in report.figures.items():
        draw(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    (tmp_path / "film.gif").write_bytes(report.files["figures/rollout.gif"])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames >= 6


def test_plain_euler_is_convicted_of_raising_v(run):
    """A rotation keeps V = |x|^2 / 20 + ..., Euler's step does not."""
    plane = RandomField(dt=3.0)  # beyond the Runge-Kutta method's own stability limit, too
    plane.load(run)
    config = LyapunovConfig(hidden=(4,), epsilon=0.5)
    model = StableDynamics(Linear([[0.0, -1.0], [1.0, 0.0]]), config.build(2), alpha=0.0)
    with torch.no_grad():
        model.lyapunov.network.passthrough.weight.zero_()  # V = |x|^2 / 2
    risen = Stability(step="euler", **FEW).certify(plane, Fitted(model), run).metrics
    safe = Stability(step="safe", **FEW).certify(plane, Fitted(model), run).metrics
    assert risen["v_rise_fraction"] == 1
    assert risen["v_bound_excess"] > 1e10
    assert risen["attack_violation"] <= 1e-12, "the field itself is sound: only the step is not"
    assert safe["v_rise_fraction"] == 0
    assert safe["clamped_fraction"] > 0.9


def test_an_exploding_model_is_reported_as_such(run):
    plane = RandomField(dt=1.0)
    plane.load(run)
    explosion = FreeField(Linear([[30.0, 0.0], [0.0, 30.0]]))
    metrics = Stability(**FEW).certify(plane, Fitted(explosion), run).metrics
    assert metrics["non_finite_fraction"] == 1
    assert metrics["far_norm"] == np.inf


def test_maps_are_judged_at_their_own_rate(run, pendulum):
    model = stable_map(pendulum.spec, hidden=[16], lyapunov=SMOOTH, beta=0.98)
    report = Stability(**FEW).certify(pendulum, Fitted(model), run)
    assert report.metrics["attack_violation"] <= 1e-12
    assert report.metrics["v_bound_excess"] <= 1e-9
    assert json.loads(report.files["stability.json"])["decay_rate"] == pytest.approx(-np.log(0.98) / 0.01)


class Flicker(LatentVideo):
    """A video model whose latent states grow by a factor a frame: the picture's brightness alternates."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
        self.latent = FreeField(Linear([[factor - 1.0]]))

    def encode(self, frames):
        mean = frames.flatten(1).mean(1, keepdim=True)
        return mean, torch.full_like(mean, -20.0)

    def decode(self, z):
        return torch.sigmoid(z).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)

    def advance(self):
        return lambda z: self.factor * z


def test_growing_and_frozen_videos(run):
    task = Texture(frame_count=40, height=16, width=16)
    task.load(run)
    options = {"steps": 60, "times": [10, 60], "film": 12}
    growing = VideoStability(**options).certify(task, Fitted(Flicker(1.5)), run).metrics
    assert growing["norm_10"] == pytest.approx(1.5**10, rel=0.3)
    assert growing["frames_until_3x"] in (3, 4)
    fading = VideoStability(**options).certify(task, Fitted(Flicker(0.5)), run).metrics
    assert fading["norm_60"] < 1e-10
    assert fading["motion_60"] == 0
    assert fading["frames_until_3x"] == 60


def test_stable_video_model_stays_bounded(run, tmp_path):
    task = Texture(frame_count=40, height=16, width=16)
    task.load(run)
    dynamics = FieldConfig(hidden=(16,), lyapunov=SMOOTH)
    model = ConvolutionalVideo(task.spec, architecture="small", latent=4, dynamics=dynamics)
    options = {"steps": 40, "times": [40], "film": 12, "attack_starts": 100, "attack_steps": 3}
    for step in ("model", "safe"):
        for start in ("mean", "sample"):
            report = VideoStability(step=step, start=start, **options).certify(task, Fitted(model), run)
            assert report.metrics["attack_violation"] <= 1e-12
            assert np.isfinite(report.metrics["norm_40"])
    assert report.metrics["norm_40"] < 10
    for name, figure in report.figures.items():
        draw(figure, tmp_path / f"{name}.png")


def test_contact_sheet_shows_frames_in_order():
    frames = np.stack([np.full((4, 5), k, np.uint8) for k in range(24)])
    sheet = Film(frames, 0.1).contact_sheet(columns=3, rows=2).image
    assert sheet.shape == (2 * 8, 3 * 9, 3)
    assert sheet[4, 4, 0] == 0
    assert sheet[12, 22, 0] == 23


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_runs_on_a_gpu(tmp_path):
    with Run.create(tmp_path / "gpu", seed=0, device="cuda") as run:
        task = Pendulum(links=1)
        task.load(run)
        model = stable_dynamics(task.spec, hidden=[16], lyapunov=SMOOTH, alpha=0.2).to(run.device)
        fitted = OneStep(epochs=20, record_every=10).fit(task, model, run)
        metrics = Stability(**FEW).certify(task, fitted, run).metrics
        assert metrics["attack_violation"] <= 1e-12
        assert metrics["v_bound_excess"] <= 1e-9
        clip = Texture(frame_count=40, height=16, width=16)
        clip.load(run)
        dynamics = FieldConfig(hidden=(16,), lyapunov=SMOOTH)
        video = ConvolutionalVideo(clip.spec, architecture="small", latent=4, dynamics=dynamics).to(run.device)
        fitted = LatentVideoTrainer(epochs=2, record_every=1, batch_size=16).fit(clip, video, run)
        options = {"steps": 40, "times": [40], "film": 12, "attack_starts": 100, "attack_steps": 3}
        assert VideoStability(**options).certify(clip, fitted, run).metrics["attack_violation"] <= 1e-12
