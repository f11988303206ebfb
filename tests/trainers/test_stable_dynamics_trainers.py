"""Trainers of dynamics: they learn, resume to the last bit, and refuse what cannot be trained."""

import subprocess
import sys
import time

import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.methods.lyapunov import StableDynamics
from robustrun.models.dynamics import free_dynamics, rest, stable_dynamics, stable_map
from robustrun.models.latent_video import ConvolutionalVideo
from robustrun.models.lyapunov_parts import FieldConfig, LyapunovConfig
from robustrun.runtime import Run
from robustrun.tasks.pendulum import Pendulum, RandomField
from robustrun.tasks.video import Texture
from robustrun.trainers.dynamics import LatentVideoTrainer, OneStep, Passes, Trajectory

SMOOTH = LyapunovConfig(hidden=(16, 16), epsilon=0.01, centred=True, quadratic=True)


def pendulum(run, **options):
    task = Pendulum(links=1, points_per_link=200, **options)
    task.load(run)
    return task


@pytest.mark.parametrize("make", [free_dynamics, stable_dynamics], ids=["free", "stable"])
def test_one_step_learns_the_derivative(run, make):
    options = {"lyapunov": SMOOTH, "centre": True, "alpha": 0.05} if make is stable_dynamics else {}
    task = pendulum(run)
    torch.manual_seed(0)
    model = make(task.spec, hidden=[32, 32], **options)
    fitted = OneStep(epochs=200, record_every=20, lr=5e-3).fit(task, model, run)
    losses = [row["loss"] for row in fitted.history]
    assert len(losses) == 10
    assert losses[-1] < 0.05 * losses[0]
    if isinstance(model, StableDynamics):
        before = stable_dynamics(task.spec, hidden=[32, 32], **options).lyapunov.network.couplings[0]
        assert not torch.equal(model.lyapunov.network.couplings[0], before), "V is trained by the same loss"
        assert model.lyapunov(torch.zeros(1, 2)) == 0


def test_one_step_trains_maps_on_next_states(run):
    task = pendulum(run, dt=0.1)
    model = stable_map(task.spec, hidden=[32, 32], lyapunov=SMOOTH)
    fitted = OneStep(epochs=100, record_every=10, lr=5e-3).fit(task, model, run)
    assert fitted.history[-1]["loss"] < 0.3 * fitted.history[0]["loss"]


def test_rise_penalty_reaches_v(run):
    task = pendulum(run)
    model = stable_dynamics(task.spec, hidden=[8], lyapunov=SMOOTH)
    weighted = OneStep(epochs=1, record_every=1, rise_penalty=10.0).fit(task, model, run)
    assert weighted.history[0]["loss"] > 0


def test_trajectories_teach_without_derivatives(run):
    task = pendulum(run, dt=0.05)
    model = stable_dynamics(task.spec, hidden=[32, 32], lyapunov=SMOOTH, centre=True)
    fitted = Trajectory(horizon=3, epochs=60, record_every=10, lr=1e-2, clip_norm=10.0).fit(task, model, run)
    assert fitted.history[-1]["loss"] < 0.4 * fitted.history[0]["loss"]
    states = next(iter(task.loader("test", 500, run).epoch(0)))
    error = (model(states.inputs) - states.targets).square().mean()
    assert error < 0.5 * states.targets.square().mean(), "the field itself has been found"


def test_video_loss_falls(run):
    task = Texture(frame_count=60, height=16, width=16)
    task.load(run)
    dynamics = FieldConfig(hidden=(16,), lyapunov=SMOOTH)
    model = ConvolutionalVideo(task.spec, architecture="small", latent=8, dynamics=dynamics)
    trainer = LatentVideoTrainer(epochs=20, record_every=4, batch_size=16, lr=5e-3, clip_norm=100.0)
    fitted = trainer.fit(task, model, run)
    first, *_, last = fitted.history
    assert last["loss"] < 0.9 * first["loss"]
    assert {"reconstruction", "divergence", "prediction"} <= set(last)
    assert last["loss"] == pytest.approx(last["reconstruction"] + last["divergence"] + last["prediction"], rel=1e-4)


def test_refusals(run):
    task = pendulum(run)
    with pytest.raises(ConfigError, match="trainer=none"):
        OneStep().fit(task, rest(task.spec), run)
    with pytest.raises(ConfigError, match=r"record_every=7 must divide trainer\.epochs=100"):
        OneStep(epochs=100, record_every=7)
    plane = RandomField()
    plane.load(run)
    with pytest.raises(ConfigError, match="trainer=none"):
        OneStep().fit(plane, free_dynamics(plane.spec), run)


def test_passes_continue_where_they_stopped(run):
    loader = pendulum(run).loader("train", 64, run, train=True)
    passes = Passes(loader, 3)
    assert len(passes) == 12
    whole = [batch.indices for batch in passes.epoch(5)]
    assert len(whole) == 12
    for start in (0, 1, 4, 7, 11):
        rest_of_it = [batch.indices for batch in passes.epoch(5, start)]
        assert len(rest_of_it) == 12 - start
        assert all(torch.equal(a, b) for a, b in zip(rest_of_it, whole[start:], strict=True))
    assert not torch.equal(whole[0], whole[4]), "every pass has its own order"


KILLED = """
import sys
from robustrun.runtime import Run
sys.path.insert(0, {root!r})
from tests.trainers.test_stable_dynamics_trainers import train_slowly
with Run.create({directory!r}, seed=0, device="cpu", threads=1) as run:
    train_slowly(run, 0.05)
"""


def train_slowly(run: Run, pause: float = 0.0):
    task = pendulum(run)
    torch.manual_seed(0)
    model = stable_dynamics(task.spec, hidden=[16], lyapunov=SMOOTH)
    if pause:
        model.register_forward_hook(lambda *_: time.sleep(pause))
    return OneStep(epochs=60, record_every=5, batch_size=50, lr=1e-3).fit(task, model, run)


def test_a_killed_training_resumes_to_the_last_bit(tmp_path, request):
    with Run.create(tmp_path / "whole", seed=0, device="cpu", threads=1) as run:
        whole = train_slowly(run)
    script = KILLED.format(root=str(request.config.rootpath), directory=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script])
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert checkpoint.is_file(), "the training was to be killed after its first checkpoint"
    with Run.create(tmp_path / "killed", seed=0, device="cpu", threads=1) as run:
        resumed = train_slowly(run)
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
