"""Equilibria of a multiscale model: forward solve and backward pass against torchdeq's same solver, same function.

Both solve the same equation (one cell, its weights and injections computed beforehand) from zero, in turns, so that a
noisy neighbour hits both; the figures are medians over the pairs. Fixed work: so many steps, no tolerance, in which
Broyden's iterates are the same ones. To a residual: until every example's relative residual is below it.
torchdeq comes with the extra `bench`.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torchdeq
from _measure import claim, ratios, timed
from torch import Tensor
from torchdeq.solver import get_solver

from robustrun.methods.equilibrium import DeepEquilibrium, Equation, FixedPointSolver
from robustrun.models.mdeq import MDEQ
from robustrun.roles import ClassificationSpec

SIZES = {
    "cifar small": ((3, 32, 32), {"channels": (24, 24)}),
    "cifar large": ((3, 32, 32), {"channels": (32, 64, 128, 256), "widths": (14, 28, 56, 112), "features": 1680}),
    "quick": ((1, 28, 28), {"channels": (16, 16), "expansion": 2, "groups": 4, "widths": (4, 8), "halvings": 1}),
}
THEIRS = {"broyden": "broyden", "anderson": "anderson", "picard": "fixed_point_iter"}


@dataclass
class Case:
    """One comparison: steps at most, and the residual to reach (0: all steps are taken)."""

    method: str
    steps: int
    rtol: float


def problem(size: str, batch: int) -> tuple[Equation, Tensor]:
    """A cell's equation with weights that are leaves, and the zero state.

    The normalisation behind each block is scaled down so that an equilibrium exists, as it does after training.
    """
    shape, options = SIZES[size]
    torch.manual_seed(0)
    model = MDEQ(ClassificationSpec(input_shape=shape, classes=10), dropout=0.0, **options)
    with torch.no_grad():
        for branch in model.cell.branches:
            branch.norm3.weight.fill_(0.5)
            branch.norm3.bias.normal_()
        equation, start = model.equation(torch.rand(batch, *shape))
    leaves = [tuple(t.detach().requires_grad_() for t in part) for part in (equation.inputs, equation.weights)]
    return Equation(equation.function, *leaves), start


def paired(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both, a value a repeat."""
    ours(), theirs()
    pairs = [(theirs(), ours())[::-1] if i % 2 else (ours(), theirs()) for i in range(repeats)]
    return tuple(zip(*pairs, strict=True))


def forward(equation: Equation, start: Tensor, case: Case, repeats: int) -> None:
    solver = FixedPointSolver(case.method, max_iterations=case.steps, rtol=case.rtol)
    layer = DeepEquilibrium(solver)  # for its workspace, which a training step finds there as well
    solve = get_solver(THEIRS[case.method])
    reached: dict[str, float] = {}

    def ours() -> float:
        def run() -> None:
            found = solver.solve(equation, start, workspace=layer.workspace)
            reached["ours"] = float(found.residual.max())

        return timed(run)

    @torch.no_grad()
    def theirs() -> float:
        def run() -> None:
            _, _, info = solve(equation, start, max_iter=steps_of(case), tol=case.rtol, stop_mode="rel")
            reached["theirs"] = float(info["rel_lowest"].max())

        return timed(run)

    report("forward solve", case, paired(ours, theirs, repeats), reached)


def backward(equation: Equation, start: Tensor, case: Case, repeats: int) -> None:
    """The backward pass alone: the linear solve and the gradients of injections and weights."""
    forwards = FixedPointSolver("broyden", max_iterations=18, rtol=0.0)
    layer = DeepEquilibrium(forwards, FixedPointSolver(case.method, max_iterations=case.steps, rtol=case.rtol))
    deq = torchdeq.get_deq(
        f_solver="broyden", f_max_iter=18, f_tol=0.0, b_solver=THEIRS[case.method], b_max_iter=steps_of(case),
        b_tol=case.rtol, b_stop_mode="rel", f_stop_mode="rel", ift=True,
    )  # fmt: skip
    leaves = (*equation.inputs, *equation.weights)
    weight = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    reached: dict[str, float] = {}

    def differentiate(z: Tensor) -> float:
        loss = (z * weight).sum()
        return timed(lambda: torch.autograd.grad(loss, leaves))

    def ours() -> float:
        seconds = differentiate(layer(equation, start))
        reached["ours"] = float(layer.statistics.backward.residual.max())
        return seconds

    def theirs() -> float:
        note: list[float] = []
        z, _ = deq(equation, start, backward_writer=lambda info: note.append(float(info["rel_lowest"].max())))
        seconds = differentiate(z[-1])
        reached["theirs"] = note[-1]
        return seconds

    report("backward pass", case, paired(ours, theirs, repeats), reached)


def steps_of(case: Case) -> int:
    """torchdeq's count: it calls the starting values of Anderson's iteration steps."""
    return case.steps + 1 if case.method == "anderson" else case.steps


def report(what: str, case: Case, seconds: tuple[list[float], list[float]], reached: dict[str, float]) -> None:
    ours, theirs = map(statistics.median, seconds)
    found = ratios(seconds[1], seconds[0])
    until = f"to {case.rtol:g}" if case.rtol else f"{case.steps} steps"
    print(
        f"{what:14} {case.method:9} {until:9} ours {1e3 * ours:8.1f} ms (residual {reached['ours']:.1e})   "
        f"torchdeq {1e3 * theirs:8.1f} ms ({reached['theirs']:.1e})   ratio {statistics.median(found):5.2f}",
        flush=True,
    )
    claim(f"{case.method} {until}, {what}", found, at_least=1.5, against="torchdeq's same solver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="cifar small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=THEIRS, default=["broyden", "anderson"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    equation, start = problem(arguments.size, arguments.batch)
    print(
        f"torch {torch.__version__}, torchdeq {version('torchdeq')}, {arguments.threads} threads, "
        f"{arguments.size}, batch {arguments.batch}, {start.shape[1]} numbers a state"
    )
    for method in arguments.methods:
        for case in (Case(method, 18, 0.0), Case(method, 60, 1e-3)):
            forward(equation, start, case, arguments.repeats)
            backward(equation, start, case, arguments.repeats)


if __name__ == "__main__":
    main()
