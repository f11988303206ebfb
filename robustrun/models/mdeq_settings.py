"""How a deep equilibrium model is solved and differentiated, as its config says it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from robustrun.methods.equilibrium import DeepEquilibrium, FixedPointSolver, Gradient
from robustrun.numbers import NonNegative, NonNegativeInt, Positive, PositiveInt


class Solver(BaseModel):
    """The solver of both passes; see `methods.equilibrium.FixedPointSolver`. Steps are the model's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["broyden", "anderson", "picard"] = "broyden"
    rtol: NonNegative = 1e-3
    atol: NonNegative = 0.0
    memory: PositiveInt | None = None
    damping: Positive = 1.0
    ridge: NonNegative = 1e-8
    per_example: bool = True

    def build(self, steps: int) -> FixedPointSolver:
        """The solver of these settings, of at most so many steps."""
        return FixedPointSolver(self.name, max_iterations=steps, **self.model_dump(exclude={"name"}))


class GradientSettings(BaseModel):
    """Implicit differentiation, or the phantom gradient's steps and damping."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["implicit", "phantom"] = "implicit"
    steps: PositiveInt = 5
    damping: Positive = 0.5


def layer(
    solver: Solver,
    forward_steps: PositiveInt,
    backward_steps: PositiveInt,
    gradient: GradientSettings,
    unroll: NonNegativeInt,
) -> DeepEquilibrium:
    """The equilibrium layer of a model."""
    forward, backward = solver.build(forward_steps), solver.build(backward_steps)
    return DeepEquilibrium(forward, backward, Gradient(**gradient.model_dump()), unroll)
