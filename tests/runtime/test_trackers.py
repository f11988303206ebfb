import json
import sys

import pytest

from robustrun.errors import ConfigError
from robustrun.runtime import make_tracker, trackers


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_local_lines_are_json_that_any_reader_takes(tmp_path):
    tracker = make_tracker("local", tmp_path)
    tracker.log({"loss": 0.5, "radius": float("inf"), "examples": 3}, step=2)
    tracker.summary({"loss": 0.5})
    tracker.close()
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"step": 2, "loss": 0.5, "radius": None, "examples": 3}


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path):
    tracker = make_tracker("local", tmp_path)
    tracker.log({"loss": 0.0}, step=0)
    state = tracker.state_dict()
    tracker.log({"loss": 1.0}, step=1)
    tracker.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')  # killed
    tracker = make_tracker("local", tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]
    tracker.load_state_dict(state)
    tracker.log({"loss": 3.0}, step=1)
    tracker.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 0.0), (1, 3.0)]


def test_unknown_tracker(tmp_path):
    with pytest.raises(ConfigError, match="tracker=mlflow is not known: use local, wandb, tensorboard"):
        make_tracker("local,mlflow", tmp_path)


def read_events(directory):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(directory))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_resumes_without_repeating(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = make_tracker(["tensorboard"], tmp_path)
    tracker.log({"loss": 3.0}, step=0)
    state = tracker.state_dict()
    tracker.log({"loss": 2.0}, step=1)
    tracker.close()
    tracker = make_tracker(["tensorboard"], tmp_path)
    tracker.load_state_dict(state)
    tracker.log({"loss": 1.0}, step=1)
    tracker.summary({"accuracy": 0.5})
    tracker.close()
    events = read_events(tmp_path / "tensorboard")
    assert events["loss"] == [(0, 3.0), (1, 1.0)]
    assert events["final/accuracy"] == [(1, 0.5)]
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]  # local is always written


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install robustrun\[tensorboard\]"):
        make_tracker("tensorboard", tmp_path)


def log_with_wandb(directory):
    pytest.importorskip("wandb")
    directory.mkdir()
    tracker = make_tracker("wandb", directory, run_id="abc123", config={"seed": 1})
    tracker.log({"loss": 0.5}, step=0)
    tracker.summary({"accuracy": 0.9})
    tracker.close()
    (offline,) = (directory / "wandb").glob("offline-run-*-abc123")
    assert list(offline.glob("*.wandb"))
    assert lines(directory)[0]["loss"] == 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_works_offline_without_a_key(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    log_with_wandb(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_whose_service_is_away_logs_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(trackers, "WANDB_TIMEOUT", 2.0)
    log_with_wandb(tmp_path / "run")
    assert "wandb does not answer" in caplog.text
    assert "a" * 40 not in caplog.text
