"""What may be claimed of an exploration: unsafe actions, regret, sub-optimal decisions, and how sure that is.

Source: Roderick, Nagarajan and Kolter (arXiv 2007.03574).
"""

import io
import json
from typing import Annotated

import numpy as np
from pydantic import Field

from robustrun.certifiers import exploration_figures as figures
from robustrun.certifiers.exploration_figures import Decisions
from robustrun.errors import ConfigError
from robustrun.methods.safe_exploration import (
    failure_probability_bound,
    pac_sample_complexity,
    policy_values,
    regret,
    safe_optimal_q,
    suboptimal,
)
from robustrun.methods.smoothing import clopper_pearson_upper
from robustrun.numbers import NonNegativeInt, Number, Positive, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Certifier, Fitted, MDPTask, Report, TabularAgent
from robustrun.runtime import Run

Confidence = Annotated[Number, Field(gt=0, lt=1)]


@certifiers.register("safe_exploration")
class SafeExploration(Certifier):
    """The decisions of all trials against the true MDP, and the policy learnt against the best safe one.

    Means over trials, with the least and the most of several as `_low` and `_high`; of the share of trials with any
    unsafe action `_high` is a one-sided Clopper-Pearson bound: zero unsafe trials in N support no more than that. The
    files certificate.json and certificate.npz hold all that is claimed, and the safe sets it is claimed of.

    Args:
        epsilon: a decision is sub-optimal if its value falls short of the best safe one's by more than this.
        confidence: of the statistical bounds.
        every: decisions between two points of a curve.
        frames: of the film of the growing safe set; 0: none.
    """

    def __init__(
        self,
        *,
        epsilon: Positive = 0.01,
        confidence: Confidence = 0.95,
        every: PositiveInt = 100,
        frames: NonNegativeInt = 80,
    ):
        self.epsilon, self.confidence, self.every, self.frames = epsilon, confidence, every, frames

    def certify(self, task: MDPTask, fitted: Fitted[TabularAgent], run: Run) -> Report:
        agent = fitted.at("last")
        q = safe_optimal_q(task.mdp, gamma=task.gamma, horizon=task.horizon)
        if "states" not in fitted.extra:  # nothing was explored: all there is is a policy
            policy = agent.policy.cpu().numpy()
            return Report(self._gap(task, q, [policy]) | {"safe_pairs": float(agent.safe.sum())})
        extra = {name: value.numpy() for name, value in fitted.extra.items() if hasattr(value, "numpy")}
        if extra["entered"].shape[1:] != q.shape:
            raise ConfigError(
                f"the trials were made on an MDP of {extra['entered'].shape[1]} states and {extra['entered'].shape[2]} "
                f"actions, and the task has {q.shape[0]} and {q.shape[1]}"
            )
        decisions = Decisions(extra["states"], extra["actions"], extra["successors"], extra["entered"])
        shielded = bool(extra["shielded"].all())
        wrong = np.cumsum(suboptimal(q, self.epsilon)[decisions.states, decisions.actions], axis=1)
        unsafe = np.cumsum(task.mdp.unsafe[decisions.successors], axis=1)
        metrics = self._counts(task, decisions, wrong, unsafe)
        lost = regret(task.mdp, q)[decisions.states, decisions.actions].sum(axis=1)
        metrics |= {"regret": float(lost.mean()), **self._gap(task, q, extra["policy"])}
        claims = self._claims(task, extra, metrics, unsafe)
        metrics["unsafe_trial_rate"] = claims["unsafe trials"] / len(unsafe)
        metrics["unsafe_trial_rate_high"] = claims["chance of an unsafe trial, upper bound"]
        shown = {
            "suboptimal": figures.band("Sub-optimal decisions so far", "decisions", wrong, self.every),
            "unsafe": figures.band("Unsafe actions so far", "actions", unsafe, self.every),
            "visits": figures.visits(decisions, task),
            "paths": figures.paths(decisions, task),
        }
        files = {"certificate.npz": _arrays(extra)}
        if shielded:
            growth = figures.growth(decisions.entered, decisions.states.shape[1])
            metrics |= _spread("safe_pairs", growth[:, -1])
            shown["safe_pairs"] = figures.band("Safe set", "state-action pairs", growth, self.every)
            shown["safe_set"] = figures.safe_map(decisions, task)
            bounds = self._support_bounds(task, extra)
            metrics["support_failure"] = bounds["support lacks an outcome, union bound"]
            claims |= bounds
            if self.frames:
                files["figures/safe_set.gif"] = figures.film(decisions, task, self.frames)
        files["certificate.json"] = json.dumps(claims, indent=1).encode()
        trials, steps = decisions.states.shape
        return Report(metrics, figures=shown, files=files, counts={"trials": trials, "decisions": trials * steps})

    def _counts(self, task: MDPTask, decisions: Decisions, wrong: np.ndarray, unsafe: np.ndarray) -> dict[str, float]:
        steps = wrong.shape[1]
        goal = task.mdp.goal[decisions.successors]
        first = np.where(goal.any(axis=1), goal.argmax(axis=1) + 1, steps)
        # The number of decisions taken when the last wrong one was: the cumulative count has its last value from there.
        last = np.where(wrong[:, -1] > 0, (wrong == wrong[:, -1:]).argmax(axis=1) + 1, 0)
        metrics = _spread("unsafe_actions", unsafe[:, -1]) | _spread("suboptimal", wrong[:, -1])
        for checkpoint in (10_000, 20_000):
            if checkpoint < steps:
                metrics[f"suboptimal_at_{checkpoint}"] = float(wrong[:, checkpoint - 1].mean())
        metrics |= {"last_suboptimal": float(last.mean()), "goals": float(goal.sum(axis=1).mean())}
        # Trials that never found the goal count as if they had found it with the last decision.
        return metrics | _spread("first_goal", first) | {"found": float(goal.any(axis=1).mean())}

    def _gap(self, task: MDPTask, q: np.ndarray, policies) -> dict[str, float]:
        """How much less the final policies are worth at the start than the best safe one."""
        start, setting = task.mdp.start, {"gamma": task.gamma, "horizon": task.horizon}
        best = q[start].max()
        gaps = [best - policy_values(task.mdp, policy, **setting)[start] for policy in policies]
        return {"optimality_gap": float(np.mean(gaps))}

    def _support_bounds(self, task: MDPTask, extra: dict[str, np.ndarray]) -> dict[str, float]:
        """Union bounds on having closed a support too early, with the true smallest probability and with tau."""
        smallest = float(task.mdp.probabilities[task.mdp.probabilities > 0].min())
        relied = (extra["entered"] > 0).reshape(len(extra["entered"]), -1)
        bounds = {}
        for name, p in {"": smallest, " (if only tau were known)": task.tau}.items():
            each = [
                failure_probability_bound(*arrays, p)
                for arrays in zip(relied, extra["witness"], extra["samples"], strict=True)
            ]
            bounds[f"support lacks an outcome, union bound{name}"] = max(each)
        return bounds

    def _claims(self, task: MDPTask, extra, metrics: dict[str, float], unsafe: np.ndarray) -> dict[str, float]:
        """What the trials support, in words."""
        trials, steps = unsafe.shape
        unsafe_trials, unsafe_actions = int((unsafe[:, -1] > 0).sum()), int(unsafe[:, -1].sum())
        pac = pac_sample_complexity(
            task.mdp.n_states,
            task.mdp.n_actions,
            tau=task.tau,
            epsilon=self.epsilon,
            delta=1 - self.confidence,
            gamma=task.gamma,
            horizon=task.horizon,
        )
        return {
            "confidence": self.confidence,
            "trials": trials,
            "unsafe trials": unsafe_trials,
            "chance of an unsafe trial, upper bound": self._rate_at_most(unsafe_trials, trials),
            "decisions": trials * steps,
            "unsafe actions": unsafe_actions,
            "chance of an unsafe decision, upper bound": self._rate_at_most(unsafe_actions, trials * steps),
            "decisions outside the safe set": int(extra["outside"].sum()),
            "sub-optimal decisions in a trial, mean": metrics["suboptimal"],
            "order of the PAC bound on them (constant taken as 1)": pac,
        }

    def _rate_at_most(self, hits: int, total: int) -> float:
        """One-sided Clopper-Pearson bound; 1 - (1 - confidence)^(1 / total) for no hits."""
        return float(clopper_pearson_upper(hits, total, 1 - self.confidence))


def _arrays(extra: dict[str, np.ndarray]) -> bytes:
    """The safe set of every trial with all that it rests on, as an .npz file."""
    content = io.BytesIO()
    kept = ("safe", "entered", "interval", "visits", "witness", "samples", "policy")
    np.savez_compressed(content, **{name: extra[name] for name in kept})
    return content.getvalue()


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    band = {f"{name}_low": float(values.min()), f"{name}_high": float(values.max())} if len(values) > 1 else {}
    return {name: float(values.mean()), **band}
