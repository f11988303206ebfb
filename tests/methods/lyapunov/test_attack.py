import pytest
import torch

from robustrun.methods.lyapunov import (
    StableDynamics,
    attack_decrease,
    free_decrease,
    radial_starts,
)

from .kinds import ALL, nominal


def starts(n: int, count: int = 256) -> torch.Tensor:
    return radial_starts(count, n, torch.Generator().manual_seed(0), low=1e-6, high=1e3)


def test_starts_cover_every_scale():
    radius = starts(5, 4000).norm(dim=1)
    assert radius.min() >= 1e-6 * (1 - 1e-12)
    assert radius.max() <= 1e3 * (1 + 1e-12)
    # A third of the points in each third of the logarithmic range.
    for low, high in ((1e-6, 1e-3), (1e-3, 1.0), (1.0, 1e3)):
        assert ((radius >= low) & (radius < high)).double().mean().item() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("kind", ALL)
def test_no_attack_beats_the_projection(kind):
    field = StableDynamics(nominal(6), ALL[kind](6), alpha=0.5)
    attack = attack_decrease(field.decrease, starts(6), steps=20)
    assert attack.violation <= 1e-12
    assert attack.evaluations == 256 * 21


def test_the_attack_finds_what_sampling_misses():
    """A field that decreases V = |x|^2 / 2 except in a small ball, far from all starts."""
    centre = torch.tensor([3.0, 0.0])

    def decrease(x):
        bump = torch.exp(-((x - centre) ** 2).sum(1) / 0.5)
        lyapunov = ALL["wrap"](2)
        plain = free_decrease(lambda x: -x, lyapunov, x, 0.0)
        return plain._replace(violation=plain.scale * (4 * bump - 1))

    begin = centre + torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 1.4]])
    assert decrease(begin).relative.max() < 0
    attack = attack_decrease(decrease, begin, steps=60)
    assert attack.violation == pytest.approx(3.0, abs=0.1)
    assert (attack.state - centre).norm() < 0.1
    assert attack.absolute > 0


def test_a_free_network_is_caught():
    lyapunov = ALL["wrap"](4)
    free = nominal(4)
    attack = attack_decrease(lambda x: free_decrease(free, lyapunov, x, 0.0), starts(4), steps=20)
    assert attack.violation > 0.1


def test_nan_counts_as_the_worst():
    def decrease(x):
        plain = free_decrease(lambda x: -x, ALL["wrap"](2), x, 0.0)
        return plain._replace(violation=torch.where(x[:, 0] > 0, plain.violation, float("nan")))

    assert attack_decrease(decrease, starts(2), steps=1).violation == float("inf")
