"""How the equilibria of a trained network are found and differentiated: residuals, memory, gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from robustrun.methods.equilibrium import DeepEquilibrium, Equation, FixedPointSolver, spectral_radius, unrolled
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt
from robustrun.roles import Batch, EquilibriumNetwork, Figure

METHODS = ("broyden", "anderson", "picard")
Layer = Callable[[Equation, Tensor], Tensor]
NAMES = {"broyden": "Broyden", "anderson": "Anderson", "picard": "plain iteration"}


class Study(BaseModel):
    """On how many examples (0: not at all), and how far.

    `steps` bounds the solvers that are compared, `depths` are those at which memory and accuracy are taken. Gradients
    are compared in double precision on `gradient_examples`, with networks of `gradient_layers` damped layers that
    begin at the equilibrium.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: NonNegativeInt = 64
    steps: PositiveInt = 30
    depths: tuple[PositiveInt, ...] = (1, 2, 4, 6, 8, 12, 18)
    gradient_examples: NonNegativeInt = 8
    gradient_layers: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 50)
    damping: Positive = 0.5


def study(model: EquilibriumNetwork, batch: Batch, settings: Study) -> tuple[dict[str, float], dict[str, Figure]]:
    """Metrics and figures of a classifier in evaluation mode on one batch."""
    metrics: dict[str, float] = {}
    figures: dict[str, Figure] = {}
    parts = [_forward, _backward, _accuracy_by_steps, _memory]
    for part in parts + ([_gradients] if settings.gradient_examples else []):
        about, drawn = part(model, batch, settings)
        metrics, figures = metrics | about, figures | drawn
    return metrics, figures


def _outputs(model: EquilibriumNetwork, layer: Layer, inputs: Tensor) -> Tensor:
    """The network's outputs with another layer in place of its own."""
    return model.readout(layer(*model.equation(inputs)), inputs)


def _solver(model: EquilibriumNetwork, method: str, steps: int) -> FixedPointSolver:
    own = model.layer.forward_solver
    memory = own.memory if own.method == method else None
    return replace(own, method=method, max_iterations=steps, rtol=1e-12, atol=0.0, memory=memory, per_example=True)


def _forward(model: EquilibriumNetwork, batch: Batch, settings: Study):
    """The residual after each evaluation of f, by method; and how large the Jacobian is at the equilibrium."""
    with torch.no_grad():
        equation, start = model.equation(batch.inputs)
    found = {method: _solver(model, method, settings.steps).solve(equation, start) for method in METHODS}
    radius = spectral_radius(equation, found["broyden"].z)
    metrics = {f"{method}_residual": float(solution.residual.median()) for method, solution in found.items()}
    metrics["spectral_radius"] = float(radius.median())
    return metrics, {"forward_residual": _traces("Forward solve", found)}


def _backward(model: EquilibriumNetwork, batch: Batch, settings: Study):
    """The same of the linear fixed point behind the gradient; and what the model's own backward solve takes."""
    found = {}
    for method in METHODS:
        solver = _solver(model, method, settings.steps)
        layer = DeepEquilibrium(_solver(model, "broyden", settings.steps), solver)
        _differentiate(model, layer, batch)
        found[method] = layer.statistics.backward
    own = model.layer
    layer = DeepEquilibrium(
        replace(own.forward_solver, per_example=True), replace(own.backward_solver, per_example=True)
    )
    _differentiate(model, layer, batch)
    backward = layer.statistics.backward
    metrics = {
        "backward_iterations": float(backward.iterations.float().mean()),
        "backward_residual": float(backward.residual.median()),
    }
    return metrics, {"backward_residual": _traces("Backward solve", found)}


def _traces(title: str, found: dict) -> Figure:
    series = {}
    for method, solution in found.items():
        trace = solution.trace.median(1).values.cpu().double().numpy()
        series[NAMES[method]] = (np.arange(1, len(trace) + 1), np.where(np.isfinite(trace), trace, np.nan))
    return Figure(title, "evaluations", "relative residual, median over examples", series, yscale="log")


def _differentiate(model: EquilibriumNetwork, layer: Layer, batch: Batch) -> tuple[Tensor, ...]:
    """The gradient of the mean cross-entropy for every parameter that has one."""
    with torch.enable_grad():
        loss = F.cross_entropy(_outputs(model, layer, batch.inputs), batch.targets)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return tuple(g for g in found if g is not None)


@torch.no_grad()
def _accuracy_by_steps(model: EquilibriumNetwork, batch: Batch, settings: Study):
    """Accuracy if the solver may take so many steps only."""
    accuracy = []
    for steps in settings.depths:
        layer = DeepEquilibrium(replace(model.layer.forward_solver, max_iterations=steps, per_example=True))
        accuracy.append(float((_outputs(model, layer, batch.inputs).argmax(1) == batch.targets).float().mean()))
    curve = {"at the solver's best iterate": (np.array(settings.depths), np.array(accuracy))}
    return {}, {"accuracy_by_steps": Figure("Accuracy by solver steps", "steps", "accuracy", curve)}


def _memory(model: EquilibriumNetwork, batch: Batch, settings: Study):
    """Bytes saved for the backward pass: by the implicit layer, and by the same function unrolled to the same depth."""
    few = batch.inputs[: min(8, len(batch.inputs))]

    def megabytes(layer: DeepEquilibrium) -> float:
        with torch.enable_grad():
            return saved_bytes(model, lambda: _outputs(model, layer, few)) / len(few) / 1e6

    solvers = [replace(model.layer.forward_solver, max_iterations=k, rtol=0.0, atol=0.0) for k in settings.depths]
    layers = [DeepEquilibrium(solver) for solver in solvers]
    implicit = np.array([megabytes(layer) for layer in layers])
    workspace = np.array([layer.workspace.bytes / len(few) / 1e6 for layer in layers])
    unrolled = np.array([megabytes(DeepEquilibrium(unroll=depth)) for depth in settings.depths])
    depths = np.array(settings.depths)
    series = {
        "unrolled network": (depths, unrolled),
        "equilibrium": (depths, implicit),
        "the solver's own, freed or used again": (depths, workspace),
    }
    metrics = {
        "memory_implicit": float(implicit[-1]),
        "memory_implicit_growth": float(implicit[-1] / implicit[0]),
        "memory_unrolled": float(unrolled[-1]),
        "memory_solver": float(workspace[-1]),
    }
    figure = Figure("Memory for the backward pass", "steps or layers", "MB an example", series)
    return metrics, {"memory": figure}


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters aside."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()  # alive while it is counted, or a storage could be used twice
    del kept
    return sum(seen.values())


def _gradients(model: EquilibriumNetwork, batch: Batch, settings: Study):
    """The implicit gradient against backpropagation through ever more layers, in double precision."""
    few = slice(settings.gradient_examples)
    own = copy.deepcopy(model)
    batch = Batch(batch.inputs[few], batch.targets[few], batch.indices[few])
    found = _flat(_differentiate(own, DeepEquilibrium(own.layer.forward_solver, own.layer.backward_solver), batch))
    exact = own.double()
    batch = Batch(batch.inputs.double(), batch.targets, batch.indices)
    tight = FixedPointSolver("broyden", max_iterations=200, rtol=1e-10)
    with torch.no_grad():
        equation, start = exact.equation(batch.inputs)
    z = tight.solve(equation, start).z
    implicit = _flat(_differentiate(exact, DeepEquilibrium(tight), batch))
    deep = [_unrolled_gradient(exact, batch, z, layers, settings.damping) for layers in settings.gradient_layers]
    errors = np.array([float((other - implicit).norm() / implicit.norm()) for other in deep])
    layers = np.array(settings.gradient_layers)
    figure = Figure(
        "Implicit gradient against unrolled ones",
        "damped layers from the equilibrium on",
        "relative difference",
        {"all parameters": (layers, np.where(np.isfinite(errors), errors, np.nan))},
        xscale="log",
        yscale="log",
    )
    metrics = {
        "gradient_difference": float(errors[-1]),  # to the deepest unrolled network
        "gradient_cosine": float(F.cosine_similarity(found.double(), implicit, dim=0)),  # of the model's own solvers
    }
    return metrics, {"gradient": figure}


def _unrolled_gradient(model: EquilibriumNetwork, batch: Batch, z: Tensor, layers: int, damping: float) -> Tensor:
    """By backpropagation through so many damped layers that begin at z."""
    return _flat(_differentiate(model, lambda equation, start: unrolled(equation, z, layers, damping), batch))


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])
