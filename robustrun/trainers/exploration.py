"""Agents that explore a finite MDP from nothing, trial after trial.

Source: Roderick, Nagarajan and Kolter (arXiv 2007.03574), whose experiments compare these agents.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from robustrun.errors import ConfigError, JobFailed
from robustrun.methods.safe_exploration import ASE, MBIE, Agent, EpsilonGreedy, RMax, SafeEpsilonGreedy, SafeRMax, Trial
from robustrun.numbers import Positive, PositiveInt, Probability
from robustrun.registry import trainers
from robustrun.roles import Fitted, MDPTask, TabularAgent, Trainer
from robustrun.runtime import Run

_STRIDE = 100  # decisions between two records, and between two looks at the clock
_SAVE_EVERY = 15.0  # seconds
_RECORDED = ("states", "actions", "successors")


class _Exploration(Trainer):
    """Independent trials of one kind of agent; the model takes over what the first one learnt.

    Args:
        trials: how many, each with its own seed.
    """

    def __init__(self, *, trials: PositiveInt = 5):
        self.trials = trials

    def agent(self, knowledge, start: int, **settings) -> Agent:
        """The agent of one trial, with the settings of task and model."""
        raise NotImplementedError

    def fit(self, task: MDPTask, model: TabularAgent, run: Run) -> Fitted:
        progress = run.checkpoints.load("last") if "last" in run.checkpoints else {}
        finished, history = progress.get("trials", []), progress.get("history", [])
        current, spent = progress.get("current"), progress.get("train_seconds", 0.0)
        if progress:
            run.tracker.load_state_dict(progress["tracker"])
        started = time.monotonic() - spent
        due = _Every(_SAVE_EVERY)
        for index in range(len(finished), self.trials):
            trial = self._trial(task, model, run, index)
            if current is not None:
                trial.load_state({name: array.numpy() for name, array in current.items()})
                current = None

            def save(trial: Trial = trial) -> None:
                seconds = time.monotonic() - started
                run.checkpoints.save(
                    "last",
                    {
                        "trials": finished,
                        "history": history,
                        "current": trial.state(),
                        "train_seconds": seconds,
                        "tracker": run.tracker.state_dict(),
                    },
                )

            self._explore(task, trial, index, history, due, save, run)
            finished.append(_learnt(trial))
        learnt = {name: torch.stack([torch.as_tensor(trial[name]) for trial in finished]) for name in finished[0]}
        for name in ("policy", "safe", "entered", "interval"):
            getattr(model, name).copy_(learnt[name][0])
        return Fitted(model, history=history, extra={**learnt, "train_seconds": time.monotonic() - started})

    def _trial(self, task: MDPTask, model: TabularAgent, run: Run, index: int) -> Trial:
        agent = self.agent(
            task.knowledge,
            task.mdp.start,
            gamma=task.gamma,
            horizon=task.horizon,
            tau=task.tau,
            radius=model.radius,
            update_frequency=model.update_frequency,
            pooling=model.pooling,
        )
        return Trial(task.mdp, agent, steps=task.steps, seed=run.seed_for("trial", index))

    def _explore(
        self,
        task: MDPTask,
        trial: Trial,
        index: int,
        history: list[dict[str, float]],
        due: "_Every",
        save: Callable[[], None],
        run: Run,
    ) -> None:
        with run.progress(trial.steps, f"trial {index + 1} of {self.trials}", "step", done=trial.done) as progress:
            while trial.done < trial.steps:
                before = trial.done
                try:
                    trial.advance(_STRIDE - before % _STRIDE)
                except (ValueError, RuntimeError) as error:  # knowledge that the world contradicts
                    raise JobFailed(f"decision {trial.done} of trial {index + 1}: {error}") from error
                history.append(_record(task, trial, index))
                run.tracker.log(
                    {name: value for name, value in history[-1].items() if name != "decision"},
                    step=index * trial.steps + trial.done,
                )
                if due():
                    save()
                run.leave_if_asked(save)
                progress.update(trial.done, safe=history[-1]["safe_pairs"], unsafe=history[-1]["unsafe"])


class _Every:
    """True once in so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self.last > self.seconds
        if due:
            self.last = time.monotonic()
        return due


def _record(task: MDPTask, trial: Trial, index: int) -> dict[str, float]:
    reached = trial.successors[: trial.done]
    return {
        "trial": index,
        "decision": trial.done,
        "unsafe": int(task.mdp.unsafe[reached].sum()),
        "goals": int(task.mdp.goal[reached].sum()),
        "safe_pairs": int(trial.agent.safe.sum()),
    }


def _learnt(trial: Trial) -> dict[str, Any]:
    """What a finished trial leaves: its decisions, and all that can be concluded about its safe set."""
    agent, support = trial.agent, trial.agent.support
    return {
        **{name: getattr(trial, name) for name in _RECORDED},
        "outside": np.array(trial.outside),
        "policy": agent.policy,
        "safe": agent.safe,
        "entered": agent.entered,
        "interval": agent.evidence.radius.reshape(agent.safe.shape),
        "visits": agent.evidence.visits.reshape(agent.safe.shape),
        "witness": support.witness,
        "samples": support.samples,
        "shielded": np.array(agent.shielded),
    }


@trainers.register("ase")
class AnalogousSafeExploration(_Exploration):
    """ASE: extends the safe set by analogy, and only acts in it.

    Args:
        directed: extend it where the way to the goal leads; false: wherever it can be extended.
    """

    def __init__(self, *, directed: bool = True, **common):
        super().__init__(**common)
        self.directed = directed

    def agent(self, knowledge, start: int, **settings) -> Agent:
        return ASE(knowledge, start, directed=self.directed, **settings)


@trainers.register("mbie")
class IntervalEstimation(_Exploration):
    """Model-based interval estimation: optimism, without safety."""

    def agent(self, knowledge, start: int, **settings) -> Agent:
        return MBIE(knowledge, start, **settings)


@trainers.register("rmax")
class RMaxExploration(_Exploration):
    """R-MAX: what is not known is worth as much as the goal.

    Args:
        safe: act in the safe set only, which grows as it does for ASE.
    """

    def __init__(self, *, safe: bool = False, **common):
        super().__init__(**common)
        self.kind = SafeRMax if safe else RMax

    def agent(self, knowledge, start: int, **settings) -> Agent:
        return self.kind(knowledge, start, **settings)


@trainers.register("epsilon_greedy")
class EpsilonGreedyExploration(_Exploration):
    """The best known action, or now and then a random one.

    Args:
        safe: act in the safe set only, which grows as it does for ASE.
        epsilon: the chance of a random action in the end; it falls from 1.
        annealing_time: decisions until then.
        random_action: "uniform", or "published_platformer": the two actions of speed -2 with 0.3 each, the other
            eight of the platformer with 0.05, which the published curve of the unsafe agent was made with.
    """

    def __init__(
        self,
        *,
        safe: bool = False,
        epsilon: Probability = 0.1,
        annealing_time: Positive = 5000,
        random_action: Literal["uniform", "published_platformer"] = "uniform",
        **common,
    ):
        super().__init__(**common)
        self.kind = SafeEpsilonGreedy if safe else EpsilonGreedy
        self.epsilon, self.annealing_time, self.random_action = epsilon, annealing_time, random_action

    def agent(self, knowledge, start: int, **settings) -> Agent:
        weights = None
        if self.random_action == "published_platformer":
            if knowledge.n_actions != 10:
                raise ConfigError("trainer.random_action=published_platformer needs the platformer's ten actions")
            weights = np.array([0.3] * 2 + [0.05] * 8)
        return self.kind(
            knowledge,
            start,
            epsilon=self.epsilon,
            annealing_time=self.annealing_time,
            action_weights=weights,
            **settings,
        )
