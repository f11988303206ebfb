import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from robustrun.methods.dynamics import NLinkPendulum, euler_step, integrator, rk4_step, rollout, squared_error


def dense_field(pendulum: NLinkPendulum, x: torch.Tensor) -> torch.Tensor:
    """M(q) du/dt = ... with the mass matrix and a general solver, as the equations are usually written."""
    q, u = x.chunk(2, dim=1)
    gap = q.unsqueeze(2) - q.unsqueeze(1)
    carried = [sum(pendulum.masses[max(i, j) :]) for i in range(pendulum.links) for j in range(pendulum.links)]
    lengths = torch.tensor(pendulum.lengths)
    inertia = torch.tensor(carried).view(pendulum.links, -1) * torch.outer(lengths, lengths)
    weight = pendulum.gravity * torch.tensor([sum(pendulum.masses[i:]) for i in range(pendulum.links)]) * lengths
    torque = -((inertia * gap.sin()) @ (u * u).unsqueeze(2)).squeeze(2) - weight * q.sin()
    torque = torque - torch.tensor(pendulum.damping) * u
    return torch.cat([u, torch.linalg.solve(inertia * gap.cos(), torque)], 1)


def uneven(links: int, damping: float = 0.3) -> NLinkPendulum:
    rng = np.random.default_rng(links)
    return NLinkPendulum(
        links,
        masses=rng.uniform(0.2, 3, links).tolist(),
        lengths=rng.uniform(0.1, 1, links).tolist(),
        damping=(damping * rng.uniform(0, 2, links)).tolist(),
        gravity=5.0,
    )


@pytest.mark.parametrize(
    ("state", "accelerations", "energy"),
    [
        ([1.0, 0.5], [-8.40483036], None),
        ([0.3, -0.2, 0.5, -1.0], [-14.02988971, 17.53013521], 0.61372466),
        ([0.3, -0.2, 0.1, 0.5, -1.0, 0.7], [-26.92264409, 38.32473426, -15.30098374], 0.63115058),
    ],
)
def test_reference_values(state, accelerations, energy):
    links = len(state) // 2
    pendulum, x = NLinkPendulum(links), torch.tensor([state])
    expected = torch.tensor([state[links:] + accelerations])
    torch.testing.assert_close(pendulum.field(x), expected, rtol=0, atol=1e-7)
    if energy is not None:
        assert pendulum.energy(x).item() == pytest.approx(energy, abs=1e-7)


@pytest.mark.parametrize("links", [1, 2, 3, 5, 8, 12])
def test_equals_the_dense_equations(links):
    x = 3 * torch.randn(50, 2 * links)
    for pendulum in (NLinkPendulum(links), uneven(links)):
        expected = dense_field(pendulum, x)
        scale = expected.abs().max()
        torch.testing.assert_close(pendulum.field(x) / scale, expected / scale, rtol=0, atol=1e-11)
        one_by_one = torch.cat([pendulum.field(row[None]) for row in x])
        torch.testing.assert_close(pendulum.field(x), one_by_one, rtol=1e-12, atol=1e-10)
        matrix = pendulum.mass_matrix(x[:, :links])
        torch.testing.assert_close(matrix, matrix.mT)
        assert torch.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("links", [1, 2, 4])
def test_symmetries(links):
    pendulum, x = uneven(links), torch.randn(20, 2 * links)
    torch.testing.assert_close(pendulum.field(-x), -pendulum.field(x))
    turned = x.clone()
    turned[:, links - 1] += 2 * math.pi
    torch.testing.assert_close(pendulum.field(turned), pendulum.field(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("links", [1, 3, 8])
def test_energy_and_its_gradient(links):
    pendulum, x = uneven(links), torch.randn(30, 2 * links, requires_grad=True)
    energy, gradient = pendulum.energy_and_gradient(x)
    q, u = x.chunk(2, dim=1)
    kinetic = 0.5 * (u.unsqueeze(1) @ pendulum.mass_matrix(q) @ u.unsqueeze(2)).flatten()
    rest = torch.tensor(pendulum.lengths).cumsum(0)
    height = torch.tensor(pendulum.masses) * pendulum.gravity * (rest - pendulum.positions(q)[:, :, 1])
    torch.testing.assert_close(energy, kinetic + height.sum(1))
    torch.testing.assert_close(gradient, torch.autograd.grad(energy.sum(), x)[0])
    # The power of the damping is all that is lost.
    loss = (torch.tensor(pendulum.damping) * u.detach() ** 2).sum(1)
    rate = (gradient * pendulum.field(x)).sum(1).detach()
    torch.testing.assert_close(rate, -loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("links", "slowest", "fastest"),
    [
        (1, -0.15 + 3.12850j, -0.15 + 3.12850j),
        (2, -0.26360 + 3.38542j, -1.53640 + 8.02552j),
        (4, -0.37305 + 3.56631j, -7.43943 + 17.21769j),
        (8, -0.43680 + 3.68902j, -58.5925),
    ],
)
def test_linearisation_at_rest(links, slowest, fastest):
    pendulum = NLinkPendulum(links)
    jacobian = torch.func.jacrev(lambda x: pendulum.field(x[None])[0])(torch.zeros(2 * links))
    eigenvalues = torch.linalg.eigvals(jacobian).numpy()
    for value, expected in (
        (eigenvalues[eigenvalues.real.argmax()], slowest),
        (eigenvalues[eigenvalues.real.argmin()], fastest),
    ):
        assert value.real == pytest.approx(np.real(expected), abs=1e-4)
        assert abs(value.imag) == pytest.approx(abs(np.imag(expected)), abs=1e-4)


def test_energy_is_kept_without_damping():
    pendulum = NLinkPendulum(2, damping=0.0)
    start = torch.tensor([[0.3, -0.2, 0.0, 0.1]])
    states = rollout(integrator(pendulum.field, 2e-3), start, 2500, every=50)[:, 0]
    energy = pendulum.energy(states)
    assert (energy / energy[0] - 1).abs().max() < 1e-8


@pytest.mark.parametrize("links", [1, 2, 4])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_against_scipy(links, damping):
    """Trajectories and energies against an adaptive integrator on the same time span."""
    pendulum = uneven(links, damping)
    start = 0.5 * torch.randn(2, 2 * links)
    ours = rollout(integrator(pendulum.field, 2e-3), start, 500, every=250)
    for b in range(2):
        solution = solve_ivp(
            lambda t, x: dense_field(pendulum, torch.from_numpy(x)[None])[0].numpy(),
            (0, 1),
            start[b].numpy(),
            method="DOP853",
            t_eval=[0, 0.5, 1],
            rtol=1e-9,
            atol=1e-10,
        )
        np.testing.assert_allclose(ours[:, b].numpy(), solution.y.T, atol=1e-5)
    energy = pendulum.energy(ours[:, 0])
    if damping:
        assert (energy.diff() < 0).all()
    else:
        torch.testing.assert_close(energy, energy[:1].expand(3), rtol=1e-6, atol=0)


def test_order_of_the_integrators():
    pendulum = NLinkPendulum(2)
    start = torch.tensor([[0.3, -0.2, 0.1, 0.0]])
    exact = rollout(integrator(pendulum.field, 1e-3), start, 1000, every=1000)[-1]
    for step, low, high in ((rk4_step, 14, 20), (euler_step, 1.8, 2.4)):
        errors = []
        for h in (0.02, 0.01, 0.005) if step is rk4_step else (0.004, 0.002):
            end = rollout(lambda x, h=h, step=step: step(pendulum.field, x, h), start, round(1 / h))[-1]
            errors.append((end - exact).norm().item())
        for coarse, fine in itertools.pairwise(errors):
            assert low < coarse / fine < high
    halves = integrator(pendulum.field, 0.02, substeps=2)(start)
    torch.testing.assert_close(halves, rollout(integrator(pendulum.field, 0.01), start, 2)[-1])


def test_only_the_error_of_an_angle_is_wrapped():
    truth = torch.tensor([math.pi - 0.01, 1.0])
    guess = torch.tensor([-math.pi + 0.01, 4.0])
    assert squared_error(truth, guess, 1).item() == pytest.approx(0.02**2 + 9.0)
    assert squared_error(truth, guess).item() == pytest.approx((2 * math.pi - 0.02) ** 2 + 9.0)


def test_positions_hang_down_at_rest():
    places = NLinkPendulum(2, lengths=[1.0, 0.5]).positions(torch.tensor([[0.0, 0.0], [math.pi / 2, 0.0]]))
    expected = torch.tensor([[[0.0, 1.0], [0.0, 1.5]], [[1.0, 0.0], [1.0, 0.5]]])
    torch.testing.assert_close(places, expected)


def test_impossible_pendulums_are_refused():
    for bad in ({"masses": 0.0}, {"lengths": -1.0}, {"damping": -0.1}, {"masses": [1.0]}):
        with pytest.raises(ValueError):
            NLinkPendulum(2, **bad)
    with pytest.raises(ValueError, match="at least one link"):
        NLinkPendulum(0)
