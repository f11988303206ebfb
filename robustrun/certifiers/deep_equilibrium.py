"""Deep equilibrium classifiers: accuracy, and whether and how the equilibrium of every example was found.

Source: Bai, Koltun and Kolter (arXiv 2006.08656).
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustrun.certifiers.examplewise import Examplewise, fraction, judge_examples
from robustrun.certifiers.solver_study import Study, study
from robustrun.numbers import PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, ClassificationTask, EquilibriumNetwork, Fitted, Report
from robustrun.runtime import Run


@certifiers.register("deep_equilibrium")
class DeepEquilibriumReport(Examplewise):
    """Accuracy with each example's residual and iterations; solvers, memory and gradients on one batch.

    Every example is solved for by itself, so that nothing depends on what else is in the batch. Of an unrolled
    network, the residual says how far its last layer is from being an equilibrium.

    Args:
        batch_size: examples at a time.
        study: the comparisons on one batch.
        common: see `Examplewise`.
    """

    def __init__(self, *, batch_size: PositiveInt = 200, study: Study = Study(), **common):  # noqa: B008
        super().__init__(batch_size=batch_size, **common)
        self.study = study

    def certify(self, task: ClassificationTask, fitted: Fitted[EquilibriumNetwork], run: Run) -> Report:
        model = fitted.at(self.state)

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            with run.precision.autocast():
                return _judged(model, batch)

        columns = judge_examples(judge, task, run, description="evaluating", **self.selection)
        metrics = fraction(columns["correct"], "accuracy")
        if task.spec.classes > 5:
            metrics |= fraction(columns["rank"] < 5, "top5_accuracy")
        metrics |= {"loss": float(columns["loss"].mean())} | _convergence(columns)
        figures = {}
        if self.study.examples:
            split = self.selection["split"]
            chosen = range(min(self.study.examples, task.size(split)))
            batch = next(iter(task.loader(split, len(chosen), run, indices=chosen).epoch(0)))
            about, figures = study(model, batch, self.study)
            metrics |= about
        return Report(metrics, columns, figures, counts={"examples": len(columns["index"])})


def _judged(model: EquilibriumNetwork, batch: Batch) -> dict[str, Tensor]:
    layer = model.layer
    equation, start = model.equation(batch.inputs)
    if layer.unroll:
        z = layer(equation, start)
        solver = replace(layer.forward_solver, max_iterations=0, per_example=True)
        found = solver.solve(equation, z)  # looks only
        iterations = torch.full_like(found.iterations, layer.unroll)
    else:
        found = replace(layer.forward_solver, per_example=True).solve(equation, start, workspace=layer.workspace)
        z, iterations = equation(found.z), found.iterations
    logits = model.readout(z, batch.inputs).float()
    own = logits.gather(1, batch.targets[:, None])
    return {
        "label": batch.targets,
        "predicted": logits.argmax(1),
        "correct": (logits.argmax(1) == batch.targets) & logits.isfinite().all(1),
        "rank": (logits > own).sum(1),
        "loss": F.cross_entropy(logits, batch.targets, reduction="none"),
        "iterations": iterations,
        "converged": found.converged,
        "residual": found.residual,
    }


def _convergence(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """How the solver fared over all examples."""
    return fraction(columns["converged"], "converged") | {
        "iterations": float(columns["iterations"].mean()),
        "residual": float(np.median(columns["residual"])),
        "largest_residual": float(columns["residual"].max()),
    }
