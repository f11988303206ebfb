import os
import signal

import pytest

from robustrun.runtime import StopFlag


class FakeHandler:
    """Has the two handlers that submitit installs, and its module's name."""

    def __init__(self):
        self.calls = []

    def checkpoint_and_try_requeue(self, signum, frame=None):
        self.calls.append(("requeue", signum))
        raise SystemExit(-1)

    def bypass(self, signum, frame=None):
        self.calls.append(("bypass", signum))


FakeHandler.checkpoint_and_try_requeue.__module__ = "submitit.core.job_environment"
FakeHandler.bypass.__module__ = "submitit.core.job_environment"


@pytest.fixture
def submitit(monkeypatch):
    handler = FakeHandler()
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
    signal.signal(signal.SIGTERM, handler.bypass)
    yield handler
    for signum, previous in before.items():
        signal.signal(signum, previous)


def test_submitit_really_names_its_handlers_so():
    module = pytest.importorskip("submitit.core.job_environment")
    assert module.SignalHandler.checkpoint_and_try_requeue.__module__.startswith("submitit.")
    assert module.SignalHandler.bypass.__name__ == "bypass"


def test_submitit_requeues_after_saving(submitit):
    with StopFlag().installed() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.requested
        assert submitit.calls == []  # the handler has set the flag and nothing else
        with pytest.raises(SystemExit):
            stop.leave()
    assert submitit.calls == [("requeue", signal.SIGUSR2)]
    assert signal.getsignal(signal.SIGUSR2) == submitit.checkpoint_and_try_requeue


def test_submitit_requeues_although_sigterm_came_first(submitit):
    """SLURM sends both at the end of a job's time."""
    with StopFlag().installed() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(SystemExit):
            stop.leave()
    assert submitit.calls == [("requeue", signal.SIGTERM)]


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False)])
def test_sigterm_alone_under_submitit(submitit, state, requeued, tmp_path, monkeypatch):
    """Of a job that still counts as running it announces a preemption; otherwise SLURM is ending the job itself."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=$5 JobState={state} Reason=None\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with StopFlag().installed() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            stop.leave(saved=", saved")
    assert submitit.calls == ([("requeue", signal.SIGTERM)] if requeued else [])


def test_another_rank_got_the_signal(submitit):
    with StopFlag().installed() as stop, pytest.raises(SystemExit):
        stop.leave()
    assert submitit.calls == [("requeue", signal.SIGUSR2)]


def test_ctrl_c_once_and_twice():
    with StopFlag().installed() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="interrupted, saved: the same command resumes"):
            stop.leave(saved=", saved")
