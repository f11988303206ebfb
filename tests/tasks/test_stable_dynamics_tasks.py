"""Tasks of states and of videos: what they serve, and what they refuse."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustrun.errors import ConfigError, DataError
from robustrun.methods.dynamics import waves
from robustrun.registry import tasks
from robustrun.tasks.pendulum import Pendulum, RandomField
from robustrun.tasks.trajectories import GymnasiumTrajectories, Recorded
from robustrun.tasks.video import Film, Texture


def oscillation(count: int, length: int, dt: float, seed: int = 0) -> list[np.ndarray]:
    """Trajectories of x'' = -x, (length, 2) each."""
    phases = np.random.default_rng(seed).uniform(0, 6, count)
    times = dt * np.arange(length)
    return [np.stack([np.cos(times + p), -np.sin(times + p)], 1) for p in phases]


def write_csv(path, trajectories, dt, *, with_time=True):
    lines = ["run,time,position,velocity"] if with_time else ["run,position,velocity"]
    for number, states in enumerate(trajectories):
        for k, (x, v) in enumerate(states):
            lines.append(f"{number},{k * dt},{x},{v}" if with_time else f"{number},{x},{v}")
    path.write_text("\n".join(lines) + "\n")


def test_pendulum_states_and_derivatives(run):
    task = Pendulum(links=3, points_per_link=50)
    task.load(run)
    assert task.spec.input_shape == (6,)
    assert task.size("train") == task.size("test") == 150
    assert task.size("valid") == 0
    (batch,) = task.loader("test", 1000, run).epoch(0)
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.abs().max() <= np.pi
    torch.testing.assert_close(batch.targets, task.system.field(batch.inputs.double()).float(), rtol=1e-4, atol=1e-3)
    train = torch.cat([b.inputs for b in task.loader("train", 40, run, train=True).epoch(0)])
    assert len(train) == 150
    assert not torch.isin(train[:, 0], batch.inputs[:, 0]).any(), "train and test states are drawn independently"
    # The next states by the integrator, and the same starts again for the same seed.
    (windows,) = task.loader("test", 1000, run, horizon=4).epoch(0)
    assert windows.targets.shape == (150, 4, 6)
    starts, truth = task.trajectories(7, 20, run)
    assert truth.shape == (21, 7, 6)
    assert starts.abs().max() <= np.pi / 8
    assert torch.equal(truth[0], starts)
    assert torch.equal(task.trajectories(7, 20, run)[1], truth)
    energy = task.system.energy(truth.flatten(0, 1)).view(21, 7)
    assert (energy.diff(dim=0) < 0).all()


def test_random_field_has_starts_but_nothing_to_learn(run):
    task = RandomField(dimension=3, box=2.0)
    task.load(run)
    starts, truth = task.trajectories(100, 5, run)
    assert truth is None
    assert 1.5 < starts.abs().max() <= 2
    with pytest.raises(ConfigError, match="trainer=none"):
        task.loader("train", 10, run)


def test_recorded_trajectories(run, tmp_path):
    path = tmp_path / "swing.csv"
    write_csv(path, oscillation(5, 60, 0.02), 0.02)
    task = Recorded(files=str(path), time="time", trajectory="run", angles=1, held_out=0.4)
    task.load(run)
    assert task.spec.input_shape == (2,)
    assert task.spec.dt == pytest.approx(0.02)
    assert task.spec.angles == 1
    assert (task.size("train"), task.size("test")) == (180, 120)
    (batch,) = task.loader("train", 1000, run).epoch(0)
    expected = torch.stack([batch.inputs[:, 1], -batch.inputs[:, 0]], 1)
    torch.testing.assert_close(batch.targets, expected, rtol=0, atol=1e-3)
    (windows,) = task.loader("train", 1000, run, horizon=3).epoch(0)
    assert windows.targets.shape == (3 * 57, 3, 2)
    starts, truth = task.trajectories(4, 1000, run)
    assert torch.equal(truth[0], starts)
    assert len(truth) == 31
    radius = truth.norm(dim=2)
    torch.testing.assert_close(radius, torch.ones_like(radius))
    with pytest.raises(ConfigError, match="horizon"):
        task.loader("train", 10, run, horizon=60)


def test_recorded_single_trajectory_and_folder(run, tmp_path):
    for k, states in enumerate(oscillation(3, 40, 0.1)):
        write_csv(tmp_path / f"part{k}.csv", [states], 0.1, with_time=False)
    folder = Recorded(files=str(tmp_path), states=["position", "velocity"], dt=0.1)
    folder.load(run)
    assert (folder.size("train"), folder.size("test")) == (80, 40)
    single = Recorded(files=str(tmp_path / "part0.csv"), states=["velocity"], dt=0.1, held_out=0.25)
    single.load(run)
    assert (single.size("train"), single.size("test")) == (30, 10)
    assert single.spec.input_shape == (1,)


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        ("a,b\n1,2\n", {"states": ["a", "c"]}, ConfigError, "no column 'c'"),
        ("a,b\n1,2\n1,x\n1,2\n", {}, DataError, "line 3.*'x'.*not a finite number"),
        ("a,b\n1,2\n1,nan\n1,2\n", {}, DataError, "not a finite number"),
        ("a,b\n1\n", {}, DataError, "not a finite number"),
        ("a,b\n", {}, DataError, "no states"),
        ("", {}, DataError, "no states"),
        ("a,b\n1,2\n2,3\n", {}, DataError, "at least 3 states"),
        ("a,t\n1,0\n2,1\n3,1\n", {"time": "t"}, DataError, "equal steps"),
        ("a,b\n" + "1,2\n" * 9, {"angles": 3}, ConfigError, "angles=3"),
    ],
)
def test_hostile_recordings_are_refused(run, tmp_path, content, options, error, message):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(error, match=message):
        Recorded(files=str(path), dt=0.1, **options).load(run)


def test_a_binary_file_and_a_byte_order_mark(run, tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"a,b\n\xff\xfe\x00\x80\n")
    with pytest.raises(DataError, match="not a CSV file"):
        Recorded(files=str(tmp_path / "bad.csv"), dt=0.1).load(run)
    (tmp_path / "good.csv").write_bytes(b"\xef\xbb\xbfa,b\n" + b"1,2\n" * 9)
    task = Recorded(files=str(tmp_path / "good.csv"), dt=0.1, states=["a"])
    task.load(run)
    assert task.spec.input_shape == (1,)


def test_missing_recordings_and_intervals_are_refused(run, tmp_path):
    with pytest.raises(DataError, match="no such CSV"):
        Recorded(files=str(tmp_path / "nothing.csv"), dt=0.1).load(run)
    with pytest.raises(ConfigError, match=r"task\.dt"):
        Recorded(files="x.csv")


def test_gymnasium_observations(run):
    task = GymnasiumTrajectories(environment="Pendulum-v1", episodes=4, steps=30)
    task.load(run)
    assert task.spec.input_shape == (3,)
    assert task.size("train") + task.size("test") == 4 * 31
    _, truth = task.trajectories(5, 10, run)
    radius = truth[..., 0] ** 2 + truth[..., 1] ** 2  # cosine and sine of the angle
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=1e-5, atol=0)
    again = GymnasiumTrajectories(environment="Pendulum-v1", episodes=4, steps=30)
    again.load(run)
    assert torch.equal(again.trajectories(5, 10, run)[1], truth)
    with pytest.raises(ConfigError, match="NoSuchThing"):
        GymnasiumTrajectories(environment="NoSuchThing-v1").load(run)
    with pytest.raises(ConfigError, match="not a vector"):
        GymnasiumTrajectories(environment="FrozenLake-v1").load(run)


def test_texture_pairs(run):
    task = Texture(frame_count=50, height=16, width=20, held_out=0.2)
    task.load(run)
    assert task.spec.input_shape == (1, 16, 20)
    frames = task.frames("train")
    assert frames.shape == (40, 1, 16, 20)
    loader = task.loader("train", 16, run, train=True)
    batches = list(loader.epoch(3))
    assert [len(b.inputs) for b in batches] == [16, 16, 7]
    seen = torch.cat([b.indices for b in batches])
    assert sorted(seen.tolist()) == list(range(39))
    for batch in batches:
        torch.testing.assert_close(batch.inputs, frames[batch.indices].float() / 255)
        torch.testing.assert_close(batch.targets, frames[batch.indices + 1].float() / 255)
    # A resumed epoch continues with the same pairs.
    (last,) = list(loader.epoch(3, 2))
    assert torch.equal(last.indices, batches[2].indices)


def test_film_from_pictures_never_pairs_across_folders(run, tmp_path):
    clip = waves(24, 8, 12)[..., 0]
    for k, frame in enumerate(clip):
        folder = tmp_path / ("one" if k < 12 else "two")
        folder.mkdir(exist_ok=True)
        Image.fromarray(frame).save(folder / f"frame{k}.png")  # frame9 comes before frame10
    task = Film(path=str(tmp_path), grey=True, held_out=0.25)
    task.load(run)
    assert task.spec.input_shape == (1, 8, 12)
    np.testing.assert_array_equal(task.frames("train")[:9, 0].numpy(), clip[:9])
    np.testing.assert_array_equal(task.frames("train")[9:, 0].numpy(), clip[12:21])
    (batch,) = task.loader("train", 100, run).epoch(0)
    assert batch.indices.tolist() == [k for k in range(17) if k != 8]
    scaled = Film(path=str(tmp_path), height=4, width=6)
    scaled.load(run)
    assert scaled.spec.input_shape == (3, 4, 6)


def test_film_from_a_gif(run, tmp_path):
    clip = waves(30, 16, 16)[..., 0]
    pictures = [Image.fromarray(frame) for frame in clip]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:])
    task = Film(path=str(tmp_path / "clip.gif"), grey=True)
    task.load(run)
    np.testing.assert_allclose(task.frames("train")[5, 0].numpy(), clip[5], atol=3)


def test_unreadable_films_are_refused(run, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        Film(path=str(tmp_path / "nothing")).load(run)
    with pytest.raises(DataError, match="no pictures"):
        Film(path=str(tmp_path)).load(run)
    with pytest.raises(ConfigError, match="go together"):
        Film(path="x", height=3)
    (tmp_path / "a1.png").write_bytes(b"this is not a picture")
    with pytest.raises(DataError, match="cannot be read"):
        Film(path=str(tmp_path)).load(run)
    (tmp_path / "a1.png").unlink()
    for k, size in enumerate([(4, 4), (5, 4)]):
        Image.new("L", size).save(tmp_path / f"b{k}.png")
    with pytest.raises(DataError, match="differ in size"):
        Film(path=str(tmp_path)).load(run)


def test_all_are_registered():
    for name in ("pendulum", "random_field", "recorded", "gymnasium", "texture", "film"):
        assert tasks[name]
