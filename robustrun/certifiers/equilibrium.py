"""Equilibrium networks: what their weights prove, what the solver reached, and radii that cannot be attacked.

Source: Winston and Kolter (arXiv 2006.08591) for existence, uniqueness and convergence.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustrun.certifiers.examplewise import Examplewise, fraction, judge_examples
from robustrun.certifiers.smoothing import radius_name
from robustrun.certifiers.splitting_study import Study, compare
from robustrun.methods.equilibrium import certified_radius, refine, residual, solve
from robustrun.methods.smoothing import certified_accuracy
from robustrun.numbers import Positive, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, ClassificationTask, EquilibriumClassifier, Figure, Fitted, Report
from robustrun.runtime import Run


@dataclass(frozen=True)
class Proof:
    """What is computed once from the weights, in float64.

    `margin` is a lower bound on the monotonicity of I - W: above zero, every input has exactly one equilibrium.
    `norm` is L = |I - W|_2, `sensitivity` bounds |dz| / |dx| (None without monotonicity).
    """

    margin: float
    norm: float
    sensitivity: float | None

    @staticmethod
    def of(model: EquilibriumClassifier) -> "Proof":
        """The proof from a model in float64."""
        operator = model.layer.operator
        norm = float(operator.lipschitz())
        margin = float(operator.monotonicity()) - 1e-10 * (1 + norm)  # rounding of the eigenvalues
        return Proof(margin, norm, model.injection_norm() / margin if margin > 0 else None)


@certifiers.register("equilibrium")
class Equilibrium(Examplewise):
    """Accuracy, existence and uniqueness, convergence of every example, and the l2 radii that follow.

    Each example is solved for on its own, so that nothing depends on what else is in the batch. A certificate is of
    the network whose equilibrium is exact: its prediction is proved from an approximate one and the bound on its
    error, in float64. Without a positive margin nothing is certified. Radii are in units of the input (pixels).

    Args:
        batch_size: examples at a time.
        radii: at which certified accuracy is reported.
        certificate_rtol: relative change at which the solve behind a certificate stops.
        study: comparison of both splittings over step lengths.
        common: see `Examplewise`.
    """

    def __init__(
        self,
        *,
        batch_size: PositiveInt = 400,
        radii: tuple[Positive, ...] = (0.05, 0.1, 0.2, 0.3, 0.5),
        certificate_rtol: Positive = 1e-6,
        study: Study = Study(),  # noqa: B008
        **common,
    ):
        super().__init__(batch_size=batch_size, **common)
        self.radii, self.certificate_rtol, self.study = radii, certificate_rtol, study

    def certify(self, task: ClassificationTask, fitted: Fitted[EquilibriumClassifier], run: Run) -> Report:
        model = fitted.at(self.state)
        exact = copy.deepcopy(model).double().eval()
        proof = Proof.of(exact)

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            return _solve(model, batch) | self._prove(exact, proof, batch)

        columns = judge_examples(judge, task, run, **self.selection)
        metrics = fraction(columns["correct"], "accuracy") | self._statement(model, proof) | _convergence(columns)
        for at in self.radii:
            metrics |= fraction(
                columns["certified"] & (columns["radius"] >= at), f"certified_accuracy_{radius_name(at)}"
            )
        metrics["median_radius"] = float(np.median(np.where(columns["certified"], columns["radius"], 0.0)))
        figures = {"certified_accuracy": self._curve(columns)}
        if self.study.examples:
            about, drawn = self._study(task, model, run)
            metrics, figures = metrics | about, figures | drawn
        return Report(metrics, columns, figures, counts={"examples": len(columns["index"])})

    def _prove(self, exact: EquilibriumClassifier, proof: Proof, batch: Batch) -> dict[str, Tensor]:
        """The exact network's prediction and the radius within which it holds; 0 where nothing is proved."""
        if proof.sensitivity is None:
            nothing = torch.zeros(len(batch.targets), dtype=torch.float64, device=batch.targets.device)
            return {"certified": nothing > 0, "radius": nothing, "error_bound": nothing + math.inf}
        layer = exact.layer
        bias = layer.bias(exact.embed(batch.inputs.double()))
        settings = replace(layer.settings, method="peaceman_rachford", rtol=self.certificate_rtol, per_example=True)
        z = solve(layer.operator, bias, layer.activation, settings, resolvent=layer.resolvent()).z
        z, error = refine(layer.operator, z, bias, layer.activation, proof.margin)
        logits = exact.readout(exact.pool(z[-1]))
        radius = certified_radius(logits, exact.readout.weight, exact.pool_norm * error, self._reach(exact, proof))
        return {
            "certified": (logits.argmax(1) == batch.targets) & (radius > 0),
            "radius": radius,
            "error_bound": error,
        }

    @staticmethod
    def _reach(exact: EquilibriumClassifier, proof: Proof) -> float:
        """How far the readout's input moves at most for a unit of distance of inputs."""
        return exact.pool_norm * proof.sensitivity

    def _statement(self, model: EquilibriumClassifier, proof: Proof) -> dict[str, float]:
        """What the weights prove."""
        settings = model.layer.settings
        statement = {"margin": proof.margin, "operator_norm": proof.norm, "alpha": settings.alpha}
        if proof.sensitivity is not None:
            statement |= {
                "lipschitz": self._reach(model, proof),
                "contraction": float(model.layer.operator.factorize(settings.alpha).contraction()),
                "forward_backward_limit": 2 * proof.margin / proof.norm**2,
            }
        return statement

    def _study(self, task: ClassificationTask, model: EquilibriumClassifier, run: Run):
        split = self.selection["split"]
        chosen = range(min(self.study.examples, task.size(split)))
        batch = next(iter(task.loader(split, len(chosen), run, indices=chosen).epoch(0)))
        with torch.no_grad():
            bias = model.layer.bias(model.embed(batch.inputs))
        return compare(model.layer, bias, self.study, run)

    def _curve(self, columns: dict[str, np.ndarray]) -> Figure:
        end = max([*self.radii, float(columns["radius"].max(initial=0.0))])
        at = np.linspace(0, end, 200)
        accuracy = certified_accuracy(columns["certified"], columns["radius"], at)
        return Figure("Certified accuracy", "l2 radius", "certified accuracy", {"Lipschitz bound": (at, accuracy)})


def _solve(model: EquilibriumClassifier, batch: Batch) -> dict[str, Tensor]:
    """The network as it is used: its own solver and tolerance."""
    layer = model.layer
    settings = replace(layer.settings, per_example=True)
    bias = layer.bias(model.embed(batch.inputs))
    resolvent = layer.resolvent() if settings.method == "peaceman_rachford" else None
    solution = solve(layer.operator, bias, layer.activation, settings, resolvent=resolvent)
    logits = model.readout(model.pool(solution.z[-1]))
    predicted = logits.argmax(1)
    return {
        "label": batch.targets,
        "predicted": predicted,
        "correct": (predicted == batch.targets) & logits.isfinite().all(1),
        "iterations": solution.iterations,
        "converged": solution.converged,
        "residual": residual(layer.operator, solution.z, bias, layer.activation),
    }


def _convergence(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """How the solver fared over all examples."""
    return fraction(columns["converged"], "converged") | {
        "iterations": float(columns["iterations"].mean()),
        "most_iterations": float(columns["iterations"].max()),
        "residual": float(np.median(columns["residual"])),
        "largest_residual": float(columns["residual"].max()),
    }
