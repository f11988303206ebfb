import json

import numpy as np
import pytest
import torch

from robustrun.errors import ConfigError, JobFailed
from robustrun.models.tabular_agent import ConfidentAgent
from robustrun.runtime import Run
from robustrun.tasks.exploration import UnsafeGrid
from robustrun.trainers import exploration
from robustrun.trainers.exploration import (
    AnalogousSafeExploration,
    EpsilonGreedyExploration,
    IntervalEstimation,
    RMaxExploration,
)


def small_task(run, steps=600):
    task = UnsafeGrid(map="small_islands", steps=steps)
    task.load(run)
    return task


@pytest.mark.parametrize(
    ("trainer", "shielded"),
    [
        (AnalogousSafeExploration(trials=2), True),
        (AnalogousSafeExploration(directed=False, trials=1), True),
        (RMaxExploration(safe=True, trials=1), True),
        (EpsilonGreedyExploration(safe=True, trials=1), True),
        (RMaxExploration(trials=1), False),
        (IntervalEstimation(trials=1), False),
        (EpsilonGreedyExploration(trials=1), False),
    ],
)
def test_trials_and_what_they_leave(run, trainer, shielded):
    task = small_task(run)
    model = ConfidentAgent(task.spec)
    fitted = trainer.fit(task, model, run)
    assert fitted.extra["states"].shape == (trainer.trials, 600)
    assert bool(fitted.extra["shielded"][0]) == shielded
    unsafe = torch.as_tensor(task.mdp.unsafe)[fitted.extra["successors"].long()].sum()
    assert (unsafe == 0) == shielded
    assert [r["decision"] for r in fitted.history] == list(range(100, 601, 100)) * trainer.trials
    assert (model.policy == fitted.extra["policy"][0]).all()
    if shielded:
        assert (model.entered >= 0).equal(model.safe)
        assert model.allowed_actions(task.mdp.start) == np.flatnonzero(model.safe[task.mdp.start]).tolist()
        assert int(model(torch.tensor([task.mdp.start]))) in model.allowed_actions(task.mdp.start)
    if trainer.trials > 1:
        assert not fitted.extra["states"][0].equal(fitted.extra["states"][1])


@pytest.mark.parametrize("trainer", [AnalogousSafeExploration(trials=2), EpsilonGreedyExploration(trials=2)])
def test_cut_short_and_resumed_is_the_same_to_the_last_bit(tmp_path, monkeypatch, trainer):
    monkeypatch.setattr(exploration, "_SAVE_EVERY", -1.0)
    results, logged = [], []
    for cuts in ([], [2, 5]):
        directory = tmp_path / f"run{len(cuts)}"
        for attempt in [*cuts, None]:
            with Run.create(directory, seed=3, device="cpu") as run:
                task = small_task(run, 450)
                seen, really_log = 0, run.tracker.log

                def log(*values, **step):
                    nonlocal seen
                    seen += 1
                    really_log(*values, **step)  # noqa: B023
                    if seen == attempt:  # noqa: B023
                        raise KeyboardInterrupt

                monkeypatch.setattr(run.tracker, "log", log)
                try:
                    results.append(trainer.fit(task, ConfidentAgent(task.spec), run))
                except KeyboardInterrupt:
                    assert attempt is not None
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        logged.append([line | {"time": 0} for line in lines])
    whole, resumed = results
    assert whole.history == resumed.history
    assert logged[0] == logged[1]
    for name in set(whole.extra) - {"train_seconds"}:
        assert whole.extra[name].equal(resumed.extra[name]), name


def test_seeds_matter_and_repeat(tmp_path):
    paths = []
    for k, seed in enumerate([0, 0, 1]):
        with Run.create(tmp_path / str(k), seed=seed, device="cpu") as run:
            task = small_task(run, 200)
            paths.append(AnalogousSafeExploration(trials=1).fit(task, ConfidentAgent(task.spec), run).extra["states"])
    assert paths[0].equal(paths[1])
    assert not paths[0].equal(paths[2])


def test_a_world_that_contradicts_what_was_said_of_it(run):
    task = small_task(run)
    task.knowledge.outcomes[task.mdp.start] = -1
    with pytest.raises(JobFailed, match="impossible"):
        AnalogousSafeExploration(trials=1).fit(task, ConfidentAgent(task.spec), run)


def test_intervals(run):
    task = small_task(run)
    scaled, proven = (
        ConfidentAgent(task.spec, beta=0.25),
        ConfidentAgent(task.spec, interval="weissman", analogy="pool"),
    )
    assert scaled.radius(np.array([4])).tolist() == [0.125]
    assert proven.radius(np.array([10**5]))[0] > 0.05
    assert proven.pooling
    with pytest.raises(ConfigError, match="ten actions"):
        EpsilonGreedyExploration(random_action="published_platformer").fit(task, scaled, run)
