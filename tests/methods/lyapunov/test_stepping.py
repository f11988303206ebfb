import math

import pytest
import torch

from robustrun.methods.dynamics import euler_step, integrator, rollout
from robustrun.methods.lyapunov import (
    KnownLyapunov,
    SafeStep,
    StableDynamics,
    StableMap,
    descent_along,
    feasible_factor,
)

from .kinds import ALL, CONVEX, nominal, warped
from .test_functions import points
from .test_projection import Square, linear

ROTATION = [[0.0, -1.0], [1.0, 0.0]]


def test_decay_of_a_linear_field():
    field = StableDynamics(linear([[1.0, 0.0], [0.0, 1.0]]), Square(), alpha=0.6)
    start = torch.tensor([[1.0, -2.0]])
    end = rollout(integrator(field.field(), 0.01), start, 200)[-1]
    torch.testing.assert_close(end, math.exp(-0.6) * start, rtol=1e-8, atol=0)


def test_steps_of_a_rotation():
    """Euler's step leaves the circle, the tight step stays on it, the cheap one falls inside."""
    field = StableDynamics(linear(ROTATION), Square(), alpha=0.0)
    x, h = torch.tensor([[3.0, 4.0]]), 0.1
    torch.testing.assert_close(field(x), torch.tensor([[-4.0, 3.0]]), rtol=1e-15, atol=0)
    grown = euler_step(field, x, h).norm() / 5
    assert grown.item() == pytest.approx(math.sqrt(1 + h * h), rel=1e-12)
    tight = rollout(SafeStep(field, h, "euler"), x, 10)[-1].norm() / 5
    assert tight.item() == pytest.approx(1.0, rel=1e-4)
    assert tight <= 1 + 1e-12
    cheap = SafeStep(field, h, "euler", tight=False)(x).norm() / 5
    assert cheap.item() == pytest.approx(1 / math.sqrt(1 + h * h), rel=1e-12)


@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize("kind", [*CONVEX, "warped"])
@pytest.mark.parametrize(("h", "alpha"), [(0.01, 0.05), (1.0, 0.0)])
def test_safe_steps_never_let_v_rise(kind, tight, h, alpha):
    field = StableDynamics(nominal(4), ALL[kind](4), alpha=alpha)
    step = SafeStep(field, h, tight=tight)
    with torch.no_grad():
        states = rollout(step, points(4, 8, 0.5, 20.0), 1000 if kind == "wrap" and tight and alpha else 60)
    descent = descent_along(field.lyapunov, states, alpha, h)
    assert descent.rise_fraction == 0
    assert descent.bound_excess <= 1e-9
    assert 0 <= step.clamp_fraction <= 1


def test_plain_euler_breaks_the_guarantee_and_is_caught():
    field = StableDynamics(linear(ROTATION), Square(), alpha=0.0)
    states = rollout(integrator(field.field(), 1.0, "euler"), torch.tensor([[1.0, 0.0]]), 50)
    descent = descent_along(field.lyapunov, states, 0.0, 1.0)
    assert descent.rise_fraction == 1
    assert descent.worst_rise == pytest.approx(1.0)
    assert descent.bound_excess == pytest.approx(2.0**50 - 1)


def test_continuous_guarantee_is_met_by_small_steps():
    """V(x(t)) <= exp(-alpha t) V(x(0)) along an accurately integrated solution."""
    field = StableDynamics(nominal(4), CONVEX["quadratic"](4), alpha=0.3, centre=True)
    with torch.no_grad():
        states = rollout(integrator(field.field(), 2e-3), points(4, 16, 0.5, 5.0), 500)
    assert descent_along(field.lyapunov, states, 0.3, 2e-3).bound_excess < 1e-6


@pytest.mark.parametrize("kind", CONVEX)
def test_factor_is_the_largest_feasible_one(kind):
    convex, y = CONVEX[kind](4), points(4, 100, 0.1, 10.0)
    for share in (0.99 + 0.01 * torch.rand(100), torch.rand(100)):
        target = convex(y) * share
        factor = feasible_factor(convex, y, target, iterations=30)
        reached = convex(factor[:, None] * y)
        assert (reached <= target * (1 + 1e-12)).all()
        torch.testing.assert_close(reached, target, rtol=1e-9, atol=0)
        assert (feasible_factor(convex, y, target, tight=False) <= factor + 1e-12).all()
        few = feasible_factor(convex, y, target)
        assert (convex(few[:, None] * y) <= target * (1 + 1e-12)).all()
    assert (feasible_factor(convex, y, 2 * convex(y)) == 1).all()


def test_few_iterations_suffice_for_small_excess():
    """The usual case in a roll-out: V is above its target by a percent."""
    for kind in CONVEX:
        convex, y = CONVEX[kind](4), points(4, 100, 0.5, 10.0)
        target = 0.99 * convex(y)
        few, many = (feasible_factor(convex, y, target, iterations=k) for k in (2, 40))
        torch.testing.assert_close(few, many, rtol=1e-6, atol=0)


def test_convex_form_of_a_warped_function():
    lyapunov, x = warped(3), points(3, 50)
    convex, y = lyapunov.convex_form(x)
    torch.testing.assert_close(convex(y), lyapunov(x))
    torch.testing.assert_close(lyapunov.from_convex_form(y), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("contraction", ["scaled", "tight"])
def test_stable_maps(contraction):
    for kind in CONVEX:
        stable = StableMap(nominal(4), CONVEX[kind](4), beta=0.97, contraction=contraction)
        x = points(4, 500, 1e-3, 100.0)
        decrease = stable.decrease(x)
        assert decrease.relative.max() <= 1e-12
        if contraction == "tight":  # no more contraction than needed
            active = stable.nominal(x).norm(dim=1) > stable(x).norm(dim=1) * (1 + 1e-6)
            assert decrease.relative[active].min() > -1e-9


def test_tight_map_is_differentiated_through_its_root():
    stable = StableMap(nominal(3, 6), CONVEX["quadratic"](3), beta=0.5)
    x = torch.randn(5, 3, requires_grad=True)
    assert torch.autograd.gradcheck(stable, (x,), eps=1e-6, atol=1e-5)
    stable(x).square().sum().backward()
    for parameter in (stable.nominal[0].bias, stable.lyapunov.quadratic):
        here, gradient = parameter.detach().clone(), parameter.grad.view(-1)[0]
        ends = []
        with torch.no_grad():
            for h in (1e-6, -1e-6):
                parameter.view(-1)[0] = here.view(-1)[0] + h
                ends.append(stable(x).square().sum())
                parameter.copy_(here)
        assert ((ends[0] - ends[1]) / 2e-6).item() == pytest.approx(gradient.item(), rel=1e-4, abs=1e-7)


def test_no_safe_step_without_convexity():
    for lyapunov in (ALL["plain"](3), warped(3, radial_epsilon=0.1), KnownLyapunov(Square().value_and_gradient)):
        with pytest.raises(ValueError, match="convex"):
            SafeStep(StableDynamics(nominal(3), lyapunov), 0.1)
        with pytest.raises(ValueError, match="convex"):
            StableMap(nominal(3), lyapunov)
    with pytest.raises(ValueError, match="beta"):
        StableMap(nominal(3), CONVEX["wrap"](3), beta=1.5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_a_whole_step_compiles():
    field = StableDynamics(nominal(4), CONVEX["quadratic"](4), alpha=0.1, centre=True)
    x = points(4, 20, 0.5, 5.0)
    with torch.no_grad():
        compiled = torch.compile(integrator(field.field(), 0.01), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), integrator(field, 0.01)(x))
