"""How fast the splittings of an equilibrium problem converge as the step length varies (arXiv 2006.08591, figure 3)."""

import math

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from robustrun.methods.equilibrium import MonotoneLayer, Splitting, residual, solve
from robustrun.methods.equilibrium.splitting import Method, State
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt
from robustrun.roles import Figure
from robustrun.runtime import Run

METHODS: tuple[Method, ...] = ("peaceman_rachford", "forward_backward")


class Study(BaseModel):
    """On how many examples (0: not at all), for which step lengths, for how long, and down to which residual."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: NonNegativeInt = 128
    alphas: tuple[Positive, ...] = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
    max_iterations: PositiveInt = 250
    rtol: Positive = 1e-5


def residuals(layer: MonotoneLayer, bias: State, method: Method, alpha: float, study: Study) -> np.ndarray:
    """The batch's mean of |z - sigma(W z + b)| / |z| after each iteration; shorter where it got below `rtol`."""
    recorded: list[float] = []
    operator, activation = layer.operator.fixed(), layer.activation

    def watch(z: State) -> bool:
        recorded.append(float(residual(operator, z, bias, activation).mean()))
        return recorded[-1] <= study.rtol

    settings = Splitting(method=method, alpha=alpha, rtol=0.0, max_iterations=study.max_iterations)
    solve(layer.operator, bias, activation, settings, watch=watch)
    return np.array(recorded)


def compare(layer: MonotoneLayer, bias: State, study: Study, run: Run) -> tuple[dict[str, float], dict[str, Figure]]:
    """Metrics and figures of the comparison on one batch of biases U x; of no method where W has no resolvent."""
    if not hasattr(layer.operator, "factorize"):
        return {}, {}
    metrics: dict[str, float] = {}
    shown: dict[str, Figure] = {}
    needed: dict[str, tuple[np.ndarray, ...]] = {}
    alphas = np.array(study.alphas)
    with run.progress(len(METHODS) * len(alphas), "comparing splittings", "solve") as progress, torch.no_grad():
        for method in METHODS:
            series, counts = {}, []
            for alpha in study.alphas:
                trace = residuals(layer, bias, method, alpha, study)
                counts.append(len(trace) if trace[-1] <= study.rtol else math.inf)
                series[f"alpha = {alpha:g}"] = (
                    np.arange(1, len(trace) + 1),
                    np.where(np.isfinite(trace), trace, np.nan),
                )
                progress.advance()
            counts = np.array(counts)
            name = method.replace("_", "-").title()
            metrics[f"{method}_best"] = float(counts.min())
            metrics[f"{method}_converged"] = float(np.isfinite(counts).mean())
            shown[method] = Figure(f"{name}: residual", "iteration", "relative residual", series, yscale="log")
            needed[name] = (alphas, np.where(np.isfinite(counts), counts, np.nan))
    title = f"Iterations to a residual of {study.rtol:g}"
    shown["iterations"] = Figure(title, "alpha", "iterations", needed, xscale="log", yscale="log")
    return metrics, shown
