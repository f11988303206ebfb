"""Solving f(z) = z for a batch of examples at once: the loop that all methods share, and plain iteration.

Each example stops by itself and keeps the best iterate that it has seen, so that nothing depends on what else is in
the batch; stopped examples leave it where f can be evaluated for some of the examples alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustrun.methods.equilibrium.anderson import Anderson
from robustrun.methods.equilibrium.broyden import Broyden
from robustrun.methods.equilibrium.workspace import Workspace

Function = Callable[[Tensor], Tensor]
"""f, (B, D) -> (B, D). With a method `take(rows) -> Function`, stopped examples leave the batch."""

MethodName = Literal["broyden", "anderson", "picard"]


class Method(Protocol):
    """How the next iterate comes about."""

    def advance(self, z: Tensor, f: Tensor, g: Tensor) -> None: ...

    def keep(self, rows: Tensor) -> None: ...


class Picard:
    """z <- tau f(z) + (1 - tau) z."""

    def __init__(self, damping: float = 1.0):
        self.damping = damping

    def advance(self, z: Tensor, f: Tensor, g: Tensor) -> None:
        """Move z (B, D) in place to the next iterate; f = f(z), g = f(z) - z."""
        z.add_(g, alpha=self.damping)

    def keep(self, rows: Tensor) -> None:
        """There is nothing to keep."""


@dataclass
class FixedPoint:
    """What a solver found.

    Attributes:
        z: the iterate with the smallest residual, (B, D).
        residual: |f(z) - z| / (|f(z)| + 1e-9) there, (B,); inf where f was never finite.
        absolute: |f(z) - z| there, (B,).
        iterations: steps taken by each example, (B,) int64; f was evaluated once more.
        converged: (B,) bool.
        trace: the residual by which an example is judged after 0, 1, ... steps, (steps + 1, B); once it stopped, its
            best.
        evaluations: of f on the batch, or on what was left of it.
    """

    z: Tensor
    residual: Tensor
    absolute: Tensor
    iterations: Tensor
    converged: Tensor
    trace: Tensor
    evaluations: int


@dataclass(frozen=True)
class FixedPointSolver:
    """How f(z) = z is solved.

    Attributes:
        method: `broyden`, `anderson`, or `picard`, the plain iteration.
        max_iterations: steps at most.
        rtol, atol: an example has converged where |f(z) - z| <= atol + rtol |f(z)|. With rtol = 0 the residual by which
            the best iterate is chosen is absolute. With both 0 exactly `max_iterations` steps are taken.
        memory: steps that Broyden keeps (all if None), images that Anderson mixes (6 if None).
        damping: of Anderson and plain iteration; 1 is none.
        ridge: of Anderson.
        per_example: each example is judged by itself; otherwise by one norm over the batch, as in public code.
        check_every: steps between two looks at whether any example is still at work, each of which waits for the
            device; None: every step on a CPU, every fourth elsewhere. Has no influence on the result.
    """

    method: MethodName = "broyden"
    max_iterations: int = 30
    rtol: float = 1e-3
    atol: float = 0.0
    memory: int | None = None
    damping: float = 1.0
    ridge: float = 1e-8
    per_example: bool = True
    check_every: int | None = None

    def solve(self, function: Function, start: Tensor, *, workspace: Workspace | None = None) -> FixedPoint:
        """The fixed point from `start` (B, D) on, without gradients.

        Args:
            workspace: buffers to use again.
        """
        with torch.no_grad():
            return _Run(self, function, start, workspace or Workspace()).result()

    def make(self, start: Tensor, workspace: Workspace) -> Method:
        """The iteration, at its beginning."""
        if self.method == "picard":
            return Picard(self.damping)
        if self.method == "anderson":
            return Anderson(start, self.memory or 6, workspace, self.damping, self.ridge)
        return Broyden(start, max(1, min(self.memory or self.max_iterations, self.max_iterations)), workspace)


class _Run:
    """One solve. `rows` are the examples still in the batch (None: all); `best` holds what was found for them."""

    def __init__(self, solver: FixedPointSolver, function: Function, start: Tensor, workspace: Workspace):
        batch = len(start)
        self.solver, self.function = solver, function
        self.z = workspace.take("z", start.shape, start).copy_(start)
        self.g = workspace.take("g", start.shape, start)
        self.method = solver.make(start, workspace)
        self.active = torch.ones(batch, dtype=torch.bool, device=start.device)
        least = start.new_full((batch,), torch.inf)
        self.best = self.whole = {
            "z": start.clone(),
            "measure": least,
            "residual": least.clone(),
            "absolute": least.clone(),
            "iterations": torch.zeros(batch, dtype=torch.int64, device=start.device),
            "converged": torch.zeros_like(self.active),
        }
        self.trace = start.new_full((solver.max_iterations + 1, batch), torch.nan)
        self.rows: Tensor | None = None

    def result(self) -> FixedPoint:
        solver = self.solver
        every = solver.check_every or (1 if self.z.device.type == "cpu" else 4)
        for step in range(solver.max_iterations + 1):
            f = self.function(self.z)
            self._judge(f, step)
            if step == solver.max_iterations:
                break
            if step % every == 0:
                left = int(self.active.sum())
                if not left:
                    break
                if left <= 0.75 * len(f) and hasattr(self.function, "take"):
                    f = self._go_on_with(self.active.nonzero()[:, 0], f)
            with torch.autocast(f.device.type, enabled=False):
                self.method.advance(self.z, f, self.g)
        self._write_back()
        found = dict(self.whole)
        trace = self.trace[: step + 1]
        trace = torch.where(trace.isnan(), found.pop("measure"), trace)
        return FixedPoint(trace=trace, evaluations=step + 1, **found)

    def _judge(self, f: Tensor, step: int) -> None:
        """Residuals of the present iterates, and what follows for the best ones and for who goes on."""
        solver, best, active = self.solver, self.best, self.active
        torch.sub(f, self.z, out=self.g)
        gap, size = (torch.linalg.vector_norm(v, dim=1) for v in (self.g, f))
        by = (gap, size) if solver.per_example else (_joint(gap), _joint(size))
        measure = by[0] / (by[1] + 1e-9) if solver.rtol > 0 else by[0]
        converged = by[0] <= solver.atol + solver.rtol * by[1]
        better = active & (measure < best["measure"])  # never where it is not a number
        torch.where(better[:, None], self.z, best["z"], out=best["z"])
        for name, value in (("measure", measure), ("residual", gap / (size + 1e-9)), ("absolute", gap)):
            torch.where(better, value, best[name], out=best[name])
        best["iterations"].masked_fill_(active, step)
        best["converged"] |= active & converged
        trace = torch.where(active, measure, torch.nan)
        self.trace[step, slice(None) if self.rows is None else self.rows] = trace
        self.active = active & ~converged & measure.isfinite()

    def _go_on_with(self, rows: Tensor, f: Tensor) -> Tensor:
        """Let all other examples leave the batch; f of those that stay."""
        n = len(rows)
        self._write_back()
        self.rows = rows if self.rows is None else self.rows[rows]
        self.best = {name: value[rows] for name, value in self.best.items()}
        self.function = self.function.take(rows)
        self.method.keep(rows)
        self.z[:n], self.g[:n] = self.z[rows], self.g[rows]
        self.z, self.g, self.active = self.z[:n], self.g[:n], self.active[rows]
        return f[rows]

    def _write_back(self) -> None:
        if self.rows is not None:
            for name, value in self.best.items():
                self.whole[name][self.rows] = value


def _joint(norms: Tensor) -> Tensor:
    """The norm over the whole batch, for every example."""
    return torch.linalg.vector_norm(norms).expand_as(norms)
