"""Stability of learned dynamics: proved by construction, attacked, and watched along roll-outs.

Source: Manek and Kolter (arXiv 2001.06116); the attack and the proof are this package's own.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustrun.certifiers import dynamics_figures as figures
from robustrun.methods.dynamics import StateMap, VectorField, integrator, squared_error
from robustrun.methods.lyapunov import (
    Lyapunov,
    SafeStep,
    SmoothRelu,
    StableDynamics,
    StableMap,
    WrappedLyapunov,
    attack_decrease,
    descent_along,
    only_equilibrium,
    radial_starts,
)
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Certifier, DynamicsTask, Figure, Fitted, Report, device_of
from robustrun.runtime import Run

StepName = Literal["safe", "safe_cheap", "rk4", "euler"]


@dataclass
class Rollout:
    """States (1 + T, B, n) at t = 0, dt, ..., from the starts on."""

    states: Tensor
    clamped: float | None  # share of steps that a safe step had to contract; None where the step is an ordinary one


def stepper(model: VectorField | StateMap, dt: float, name: StepName) -> Callable[[Tensor], Tensor]:
    """The map to the states one interval later; an ordinary Runge-Kutta step where none can be made safe."""
    if isinstance(model, StateMap):
        return model.step()
    if name.startswith("safe") and isinstance(model, StableDynamics) and model.lyapunov.shrinkable:
        return SafeStep(model, dt, tight=name == "safe")
    return integrator(model.field(), dt, "euler" if name == "euler" else "rk4")


def in_double(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64: close to the origin a float32 V is noise."""
    return copy.deepcopy(model).double().eval()


@certifiers.register("stability")
class Stability(Certifier):
    """Error over time beside the truth's, and what can be claimed of the Lyapunov function.

    Everything is judged in float64 on a copy of the fitted model. Metrics of V are there for models that have one.

    Args:
        state: which state of the fitted model.
        starts, steps: trajectories from so many starts over so many intervals of the task.
        far_steps: further steps after those, in which the states must stay bounded.
        times: seconds at which the error is reported; those beyond the trajectories are left out.
        step: "safe" keeps V from rising exactly (where V is convex); "safe_cheap" over-contracts; "rk4" and
            "euler" are the plain methods, which may break the guarantee.
        attack_starts, attack_steps: an adversary maximises the violation of the decrease from so many states.
        proof_box: half the width of the box on which it is proved, by branch and bound, that V has no stationary
            point but the origin; for up to three dimensions. null: no proof.
        film: how many frames of a film of one trajectory are kept; 0: none.
        portrait: half the width of the picture of a plane's vector fields; null: 1.2 times the largest start.
    """

    def __init__(
        self,
        *,
        state: str = "last",
        starts: PositiveInt = 1000,
        steps: PositiveInt = 999,
        far_steps: NonNegativeInt = 2000,
        times: list[Positive] = [0.5, 1.0, 3.0, 5.0, 9.99],  # noqa: B006
        step: StepName = "safe",
        attack_starts: PositiveInt = 10_000,
        attack_steps: NonNegativeInt = 50,
        proof_box: Positive | None = 4.0,
        film: NonNegativeInt = 60,
        portrait: Positive | None = None,
    ):
        self.state, self.starts, self.steps, self.far_steps = state, starts, steps, far_steps
        self.times, self.step, self.film, self.portrait = times, step, film, portrait
        self.attack_starts, self.attack_steps, self.proof_box = attack_starts, attack_steps, proof_box

    def certify(self, task: DynamicsTask, fitted: Fitted[VectorField | StateMap], run: Run) -> Report:
        model = in_double(fitted.at(self.state))
        starts, truth = task.trajectories(self.starts, self.steps, run)
        rollout, far = self._roll(model, task.spec.dt, starts, run)
        metrics = self._one_step_error(task, model, run)
        shown: dict[str, Figure] = {}
        files: dict[str, bytes] = {}
        if truth is not None:
            errors, rest = _errors(truth, rollout.states, task.spec.angles)
            metrics |= self._error_metrics(errors, rest, task.spec.dt)
            _say(errors, rest, task.spec.dt, run)
            shown["error"] = figures.error_over_time(errors, rest, task.spec.dt)
        metrics |= _boundedness(starts, far)
        lyapunov = getattr(model, "lyapunov", None)
        if lyapunov is not None:
            about_v, statement = self._judge_lyapunov(model, lyapunov, rollout, task.spec.dt, run, shown)
            metrics |= about_v
            files["stability.json"] = json.dumps(statement, indent=1).encode()
        if task.spec.input_shape == (2,):
            shown["field"] = figures.phase_portrait(model, lyapunov, task.derivative, rollout.states, self.portrait)
        if self.film and task.spec.angles * 2 == task.spec.input_shape[0]:
            film = figures.pendulum_film(truth, rollout.states, task.spec, self.film)
            files["figures/rollout.gif"] = film.gif()
            shown["rollout"] = film.contact_sheet()
        counts = {"trajectories": len(starts), "steps": self.steps, "far_steps": self.far_steps}
        return Report(metrics, figures=shown, files=files, counts=counts)

    @torch.no_grad()
    def _roll(self, model: VectorField | StateMap, dt: float, starts: Tensor, run: Run) -> tuple[Rollout, Tensor]:
        """The roll-outs, and the states far beyond them."""
        step = stepper(model, dt, self.step)
        states, x = [starts], starts
        with run.progress(self.steps + self.far_steps, "rolling out", "step") as progress:
            for k in range(self.steps + self.far_steps):
                x = step(x)
                if k < self.steps:
                    states.append(x)
                progress.advance()
        clamped = step.clamp_fraction if isinstance(step, SafeStep) else None
        return Rollout(torch.stack(states), clamped), x

    @torch.no_grad()
    def _one_step_error(self, task: DynamicsTask, model: VectorField | StateMap, run: Run) -> dict[str, float]:
        """Mean squared error of the derivative (of a map's next state) on the test split, over all dimensions."""
        if not task.size("test"):
            return {}
        a_map = isinstance(model, StateMap)
        total, count = 0.0, 0
        for batch in task.loader("test", 10_000, run, horizon=1 if a_map else 0).epoch(0):
            difference = model(batch.inputs.double()) - batch.targets.double().flatten(1)
            total, count = total + difference.square().sum(), count + difference.numel()
        return {"next_state_mse" if a_map else "derivative_mse": float(total) / count}

    def _error_metrics(self, errors: Tensor, rest: Tensor, dt: float) -> dict[str, float]:
        """Squared errors (1 + T, B) at the asked times, with the spread over starts, beside those of resting."""
        last = len(errors) - 1
        metrics = {}
        for time in self.times:
            if (k := round(time / dt)) <= last:
                metrics[f"error_{time:g}s"] = float(errors[k].mean())
        metrics["error_mean"] = float(errors[1:].mean())
        metrics["rest_error_end"] = float(rest[-1].mean())
        if (early := metrics.get("error_1s")) and last * dt > 1:
            # Below 1 where the error falls after the first second.
            metrics["error_growth"] = float(errors[-1].mean()) / early
        return metrics

    def _judge_lyapunov(
        self,
        model: StableDynamics | StableMap,
        lyapunov: Lyapunov,
        rollout: Rollout,
        dt: float,
        run: Run,
        shown: dict[str, Figure],
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The figures of merit, and the whole statement about V: rate, structure, worst state, overshoot."""
        dimension = rollout.states.shape[2]
        generator = run.generator("attack", device="cpu")
        points = radial_starts(self.attack_starts, dimension, generator, dtype=torch.float64).to(device_of(model))
        attack = attack_decrease(model.decrease, points, steps=self.attack_steps)
        rate = -math.log(model.beta) / dt if isinstance(model, StableMap) else model.alpha
        descent = descent_along(lyapunov, rollout.states, rate, dt)
        shown["lyapunov"] = figures.lyapunov_over_time(descent.values, rate, dt)
        statement = {
            "decay_rate": rate,
            "origin_is_the_only_equilibrium_of_v_by_construction": lyapunov.stationary_only_at_zero,
            "worst_rise_of_v_in_a_step": descent.worst_rise,
            "attack": {
                "relative_violation": attack.violation,
                "violation": attack.absolute,
                "state": attack.state.tolist(),
                "evaluations": attack.evaluations,
            },
            **_structure(lyapunov, points),
        }
        if isinstance(lyapunov, WrappedLyapunov) and lyapunov.convex and isinstance(lyapunov.outer, SmoothRelu):
            # |x(t)| <= overshoot exp(-alpha t / 2) |x(0)|
            overshoot = (lyapunov.quadratic_upper_bound() / lyapunov.epsilon).sqrt()
            statement |= {"epsilon": lyapunov.epsilon, "overshoot": float(overshoot.detach())}
        metrics = {
            "attack_violation": attack.violation,
            "v_rise_fraction": descent.rise_fraction,
            "v_bound_excess": descent.bound_excess,
        }
        if rollout.clamped is not None:
            metrics["clamped_fraction"] = rollout.clamped
        if self.proof_box and dimension <= 3 and isinstance(lyapunov, WrappedLyapunov):
            corner = torch.full((dimension,), self.proof_box, dtype=torch.float64, device=run.device)
            proof = only_equilibrium(lyapunov, -corner, corner)
            metrics["proved_fraction"] = proof.proved
            statement["proof"] = {"half_width": self.proof_box, "proved": proof.proved, "boxes": proof.evaluated}
        return metrics, statement


@torch.no_grad()
def _structure(lyapunov: Lyapunov, points: Tensor) -> dict[str, float]:
    """V and its gradient at the origin, and how far midpoints lie above chords, relative to V (convex: never)."""
    origin = lyapunov.value_and_gradient(torch.zeros_like(points[:1]))
    values, other = lyapunov(points), lyapunov(points.flip(0))
    middle = lyapunov(0.5 * (points + points.flip(0)))
    chord = 0.5 * (values + other)
    found = {
        "v_at_zero": float(origin[0].abs().max()),
        "gradient_at_zero": float(origin[1].abs().max()),
        "convexity_violation": float(((middle - chord) / chord).max()),
    }
    epsilon = getattr(lyapunov, "epsilon", 0.0)
    if epsilon:  # a V that is nothing but its quadratic floor has died
        floor = epsilon * points.square().sum(1)
        found["share_of_states_on_the_floor"] = float((values <= floor * (1 + 1e-12)).double().mean())
    return found


def _errors(truth: Tensor, states: Tensor, angles: int) -> tuple[Tensor, Tensor]:
    """Squared errors (1 + T, B) of the prediction, and of the prediction that all is at rest after the start."""
    states = states[: len(truth)]
    resting = torch.zeros_like(truth)
    resting[0] = truth[0]
    return squared_error(truth, states, angles), squared_error(truth, resting, angles)


def _say(errors: Tensor, rest: Tensor, dt: float, run: Run) -> None:
    """One sentence on the course of the error."""
    second, last = min(round(1 / dt), len(errors) - 1), len(errors) - 1
    early, late, resting = (float(e.mean()) for e in (errors[second], errors[-1], rest[-1]))
    course = "falls" if late < early else "grows"
    text = "the error %s: %.3g after %.3g s, %.3g after %.3g s (of predicting rest: %.3g)"
    run.logger.info(text, course, early, second * dt, late, last * dt, resting)


def _boundedness(starts: Tensor, far: Tensor) -> dict[str, float]:
    """Did any state leave every bound? Norms are relative to the largest start's."""
    start = torch.linalg.vector_norm(starts, dim=1).max()
    finite = torch.isfinite(far).all(1)
    norms = torch.linalg.vector_norm(far[finite], dim=1)
    metrics = {"non_finite_fraction": float((~finite).double().mean())}
    metrics["far_norm"] = float(norms.max() / start) if len(norms) else np.inf
    return metrics
