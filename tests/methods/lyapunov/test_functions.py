import math

import pytest
import torch

from robustrun.methods.lyapunov import (
    ConvexNetwork,
    PlainNetwork,
    SmoothRelu,
    WrappedLyapunov,
    leaky_lyapunov,
)

from .kinds import ALL, CONVEX, convex_network


def points(n: int, count: int, low: float = 1e-3, high: float = 30.0) -> torch.Tensor:
    direction = torch.randn(count, n)
    radius = torch.exp(math.log(low) + torch.rand(count, 1) * math.log(high / low))
    return radius * direction / direction.norm(dim=1, keepdim=True)


def reference_value(lyapunov: WrappedLyapunov, x: torch.Tensor) -> torch.Tensor:
    """V written out layer by layer, as in the paper."""
    network = lyapunov.network
    sizes = (*network.hidden, 1)

    def g(x):
        z = None
        for i, (w, b) in enumerate(
            zip(network.passthrough.weight.split(sizes), network.passthrough.bias.split(sizes), strict=True)
        ):
            a = x @ w.T + b
            if z is not None:
                rows = sizes[i] if i < len(sizes) - 1 else 1
                a = a + z @ (torch.nn.functional.softplus(network.couplings[i - 1]) / rows).T
            z = network.activation(a) if i < len(sizes) - 1 else a
        return z.squeeze(1)

    return lyapunov.outer(g(x) - g(torch.zeros_like(x[:1]))) + lyapunov.epsilon * (x * x).sum(1)


@pytest.mark.parametrize("kind", ["wrap", "sharp", "deep", "shallow", "relu"])
def test_value_is_the_papers_formula(kind):
    lyapunov = CONVEX[kind](4)
    x = points(4, 200)
    torch.testing.assert_close(lyapunov(x), reference_value(lyapunov, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ALL)
def test_gradient_is_the_derivative(kind):
    lyapunov = ALL[kind](4)
    x = points(4, 100).requires_grad_(True)
    value, gradient = lyapunov.value_and_gradient(x)
    (automatic,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, automatic, rtol=1e-12, atol=1e-12)
    # Away from kinks, central differences agree too.
    h = 1e-6
    for i in range(4):
        e = h * torch.eye(4)[i]
        numeric = (lyapunov(x + e) - lyapunov(x - e)) / (2 * h)
        close = (numeric - gradient[:, i]).abs() <= 1e-6 * (1 + gradient[:, i].abs())
        assert close.double().mean() > (0.95 if kind in ("sharp", "relu", "leaky", "plain", "folded") else 0.999)


@pytest.mark.parametrize("kind", ALL)
def test_zero_at_the_origin_exactly(kind):
    lyapunov = ALL[kind](6)
    optimizer = torch.optim.Adam(lyapunov.parameters(), lr=1e-2)
    for trained in (False, True):
        for batch in (torch.zeros(1, 6), torch.cat([points(6, 120), torch.zeros(1, 6), points(6, 79)])):
            value, gradient = lyapunov.value_and_gradient(batch)
            at = 0 if len(batch) == 1 else 120
            assert value[at] == 0
            assert (gradient[at] == 0).all()
        if not trained:
            for _ in range(100):
                optimizer.zero_grad()
                value, gradient = lyapunov.value_and_gradient(points(6, 50))
                ((value - 1) ** 2 + gradient.square().sum(1)).mean().backward()
                optimizer.step()


@pytest.mark.parametrize("kind", CONVEX)
def test_convex_and_bounded_below(kind):
    lyapunov = CONVEX[kind](4)
    with torch.no_grad():
        for coupling in lyapunov.network.couplings:
            coupling.mul_(20)  # large free weights must not matter
    x, y = points(4, 10_000), points(4, 10_000)
    value, gradient = lyapunov.value_and_gradient(x)
    slack = 1e-12 * (1 + value + lyapunov(y))
    assert (lyapunov((x + y) / 2) <= (value + lyapunov(y)) / 2 + slack).all()
    radial = lyapunov.epsilon * (x * x).sum(1)
    assert (value >= radial * (1 - 1e-14)).all()
    assert ((gradient * x).sum(1) >= value + radial - slack).all()


def test_digits_survive_near_the_origin():
    """The rise above the origin is computed as such: float32 agrees with float64 to its own precision."""
    lyapunov = WrappedLyapunov(convex_network(4, hidden=(60, 60)), 4, epsilon=1e-3)
    exact = points(4, 500, 1e-6, 1e-5)
    value, gradient = lyapunov.value_and_gradient(exact.float().double())
    single = lyapunov.float().value_and_gradient(exact.float())
    torch.testing.assert_close(single[0].double(), value, rtol=1e-3, atol=0)
    torch.testing.assert_close(single[1].double(), gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


def test_derivative_of_value_and_gradient_by_everything():
    """The hand-written backward pass against finite differences, through both outputs."""
    for depth in ((5,), (5, 4), (4, 5, 3)):
        network = ConvexNetwork(3, depth, SmoothRelu(0.5))
        x = torch.randn(6, 3, requires_grad=True)

        def outputs(x, *_, network=network):
            rise, gradient = network(x)
            return rise, gradient

        parameters = list(network.parameters())
        assert torch.autograd.gradcheck(outputs, (x, *parameters), rtol=1e-4, atol=1e-6)
    for activation_network in (PlainNetwork(3, (6, 5)), leaky_lyapunov(3, (5, 4)).network):
        assert torch.autograd.gradcheck(
            lambda x, *_, network=activation_network: network(x), (x, *activation_network.parameters()), atol=1e-6
        )


def test_quadratic_upper_bound_holds():
    for kind in ("wrap", "sharp", "centred", "quadratic", "deep"):
        lyapunov = CONVEX[kind](4)
        x = points(4, 2000, 1e-5, 1e3)
        assert (lyapunov(x) <= lyapunov.quadratic_upper_bound() * (x * x).sum(1)).all()
    with pytest.raises(ValueError, match="quadratic bound"):
        CONVEX["leaky"](4).quadratic_upper_bound()


@pytest.mark.parametrize(("n", "count"), [(2, 4023), (16, 5717)])
def test_parameter_counts_are_the_papers(n, count):
    assert sum(p.numel() for p in ConvexNetwork(n).parameters()) == count
    assert sum(p.numel() for p in PlainNetwork(n).parameters()) == 60 * n + 3781
    assert sum(p.numel() for p in leaky_lyapunov(n, (60, 60)).parameters()) == 121 * n + 3660
    assert sum(p.numel() for p in leaky_lyapunov(320).parameters()) == 168_520


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_vmap_and_compile():
    lyapunov = CONVEX["wrap"](3)
    x = points(3, 40)
    value, gradient = lyapunov.value_and_gradient(x)
    mapped = torch.vmap(lyapunov.value_and_gradient)(x.view(4, 10, 3))
    torch.testing.assert_close(mapped[0].flatten(), value)
    torch.testing.assert_close(mapped[1].flatten(0, 1), gradient)
    compiled = torch.compile(lyapunov.value_and_gradient, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled[0], value)
    torch.testing.assert_close(compiled[1], gradient)
    parameters = list(lyapunov.parameters())
    found = torch.autograd.grad(compiled[0].sum() + compiled[1].square().sum(), parameters)
    expected = torch.autograd.grad(value.sum() + gradient.square().sum(), parameters)
    torch.testing.assert_close(found, expected)


def test_impossible_parameters_are_refused():
    with pytest.raises(ValueError, match="epsilon"):
        WrappedLyapunov(convex_network(2), 2, epsilon=-1.0)
    with pytest.raises(ValueError, match="convex"):
        WrappedLyapunov(PlainNetwork(2), 2, centred=True)
    with pytest.raises(ValueError, match="hidden layer"):
        ConvexNetwork(2, ())
    with pytest.raises(ValueError, match="scale"):
        ConvexNetwork(2, (3, 3), scales=(1.0,))
