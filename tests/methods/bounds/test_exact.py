"""The exact methods against brute force, against each other, and above all relaxations."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustrun.methods.bounds import (
    Ball,
    Box,
    Unsupported,
    attained_range,
    branch_and_bound,
    crown_bounds,
    dual_bounds,
    interval_bounds,
    layer_boxes,
    lp_bounds,
    milp_bounds,
    trace,
)
from robustrun.methods.bounds.branch_and_bound import _Domains, _Search
from robustrun.methods.bounds.leaves import leaf_optima

from .nets import Residual, brute_force, mlp


def _box(n: int, d: int, epsilon, seed: int = 0) -> Box:
    generator = torch.Generator().manual_seed(seed)
    return Box.around(torch.randn(n, d, dtype=torch.float64, generator=generator), epsilon)


def test_leaves_side_by_side_are_the_leaves_one_by_one():
    net, box = mlp(3, 5, 4, 1, seed=1), _box(12, 3, 0.7, 1)
    network = trace(net, (3,))
    generator = torch.Generator().manual_seed(0)
    points = box.sample(1, generator)[0]
    values = network.values(points)
    # the signs of a point that is there, and for some boxes signs that no point has
    sign = {name: values[name].sign().to(torch.int8) for name in network.pre_activations}
    for name in sign:
        sign[name][::4] *= torch.randint(0, 2, sign[name][::4].shape, generator=generator, dtype=torch.int8) * 2 - 1
    active = {name: (s > 0).double() for name, s in sign.items()}
    direction = torch.ones(12, dtype=torch.float64)
    value, x, found = leaf_optima(network, box, active, sign, direction)
    assert found[1:4].all()
    assert not found.all()
    assert (value[~found] == torch.inf).all()
    torch.testing.assert_close(network(x[found]).flatten().detach(), value[found], atol=1e-6, rtol=0)
    there = found & (torch.arange(12) % 4 != 0)
    assert (value[there] <= network(points[there]).flatten()).all()
    for i in range(12):
        its = [{name: v[i : i + 1] for name, v in part.items()} for part in (active, sign)]
        alone, _, _ = leaf_optima(network, box[i : i + 1], *its, direction[:1])
        torch.testing.assert_close(alone[0], value[i], atol=1e-6, rtol=0)


def test_hard_problems_do_not_starve_the_others():
    """Each problem's loosest domain comes first, whatever the other problems' are; then each one's second."""
    problem = torch.tensor([2, 0, 2, 2, 0, 2])
    bound = torch.tensor([-9.0, -1.0, -7.0, -8.0, -2.0, -6.0])
    domains = _Domains(problem, bound, *[torch.zeros(6, 3)] * 6)
    order = _Search._turns(SimpleNamespace(best=torch.zeros(4)), domains)
    assert order.tolist() == [4, 0, 1, 3, 2, 5]


def test_candidates_and_steps_change_the_work_and_not_the_answer():
    net, box = mlp(4, 10, 10, 1, seed=2), _box(3, 4, 0.6, 2)
    network = trace(net, (4,))
    answers = [
        branch_and_bound(network, box, candidates=candidates, steps=steps, batch=batch)
        for candidates, steps, batch in ((1, 2, 8), (4, 8, 1024), (30, 3, 64))
    ]
    for answer in answers:
        assert answer.solved.all()
        torch.testing.assert_close(answer.minimum.lower, answers[0].minimum.upper, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(answer.maximum.upper, answers[0].maximum.lower, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [milp_bounds, branch_and_bound])
@pytest.mark.parametrize("seed", range(3))
def test_against_every_activation_pattern(method, seed):
    net, box = mlp(2, 4, 1, seed=seed), _box(3, 2, 0.8, seed)
    result = method(trace(net, (2,)), box)
    assert result.solved.all()
    for i in range(3):
        low, high = brute_force(net, box[i : i + 1])
        for bounds in (result.certified, result.attained):
            assert bounds.lower[i].item() == pytest.approx(low, abs=5e-6)
            assert bounds.upper[i].item() == pytest.approx(high, abs=5e-6)


@pytest.mark.parametrize("seed", range(4))
def test_chain_of_bounds(seed):
    net, box = mlp(3, 6, 5, 1, seed=seed), _box(2, 3, 0.4, seed)
    network = trace(net, (3,))
    boxes = layer_boxes(network, box, rule="dual", intersect=False)
    dual = dual_bounds(network, box)
    interval = interval_bounds(network, box)
    lp, tight = lp_bounds(network, box, boxes=boxes), lp_bounds(network, box, boxes=boxes, tighten=True)
    exact = milp_bounds(network, box)
    attack = attained_range(network, box, generator=torch.Generator().manual_seed(0))
    chain = [dual, lp, tight, exact.certified, exact.attained]
    lowers = [b.lower.flatten() for b in chain] + [attack.lower]
    uppers = [b.upper.flatten() for b in chain] + [attack.upper]
    for k in range(len(lowers) - 1):
        slack = 1e-5 if k == 2 else 1e-6  # the MILP widens by the solver's tolerance
        assert (lowers[k] <= lowers[k + 1] + slack).all()
        assert (uppers[k] >= uppers[k + 1] - slack).all()
    assert (interval.lower.flatten() <= exact.certified.lower + 1e-6).all()


def test_second_opinion_of_cvxpy():
    net, box = mlp(3, 5, 5, 2, seed=11), _box(2, 3, 0.4)
    network = trace(net, (3,))
    highs, other = (lp_bounds(network, box, solver=s) for s in ("highs", "cvxpy"))
    assert torch.allclose(highs.lower, other.lower, atol=1e-6)
    assert torch.allclose(highs.upper, other.upper, atol=1e-6)


@pytest.mark.parametrize(("widths", "epsilon"), [((8, 16, 16, 1), 0.25), ((6, 10, 10, 10, 1), 0.3)])
def test_branch_and_bound_agrees_with_the_milp(widths, epsilon):
    net, box = mlp(*widths, seed=4), _box(4, widths[0], epsilon)
    network = trace(net, (widths[0],))
    exact = milp_bounds(network, box)
    mine = branch_and_bound(network, box, generator=torch.Generator().manual_seed(0))
    assert mine.solved.all()
    for a, b in ((mine.minimum, exact.minimum), (mine.maximum, exact.maximum)):
        assert torch.allclose(a.lower, b.upper, atol=1e-5)
        assert torch.allclose(a.upper, b.lower, atol=1e-5)
    # the inputs returned attain what is said, inside the box
    for x, value in ((mine.at_minimum, mine.minimum.upper), (mine.at_maximum, mine.maximum.lower)):
        assert torch.allclose(net(x)[:, 0], value, atol=1e-9)
        assert (x >= box.lower).all()
        assert (x <= box.upper).all()


def test_residual_convolutional_network():
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(32, 1)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.c(torch.relu(h + self.b(torch.relu(h - 0.2))).flatten(1))

    net = Small().double()
    box = Box.around(torch.rand(2, 1, 4, 4, dtype=torch.float64), 0.02)
    network = trace(net, (1, 4, 4))
    exact, mine = milp_bounds(network, box), branch_and_bound(network, box)
    assert exact.solved.all()
    assert mine.solved.all()
    assert torch.allclose(exact.attained.lower, mine.attained.lower, atol=1e-5)
    assert torch.allclose(exact.attained.upper, mine.attained.upper, atol=1e-5)


@pytest.mark.parametrize("method", [milp_bounds, branch_and_bound])
def test_out_of_time_both_sides_hold(method):
    net, box = mlp(10, 40, 40, 1, seed=2), _box(1, 10, 0.6)
    network = trace(net, (10,))
    result = method(network, box, time_limit=0.05)
    assert not result.solved.any()
    attack = attained_range(network, box, steps=100, restarts=10, generator=torch.Generator().manual_seed(0))
    assert (result.certified.lower <= attack.lower).all()
    assert (result.certified.upper >= attack.upper).all()
    assert (result.attained.lower <= result.attained.upper).all()
    assert (result.certified.lower <= result.attained.lower).all()


def test_more_tolerance_never_narrows_the_exact_range():
    net = mlp(4, 8, 8, 1, seed=5)
    network = trace(net, (4,))
    ranges = [branch_and_bound(network, _box(3, 4, e)).attained for e in (0.05, 0.1, 0.2)]
    for small, large in itertools.pairwise(ranges):
        assert (large.lower <= small.lower + 1e-5).all()
        assert (large.upper >= small.upper - 1e-5).all()


def test_one_noisy_feature_is_a_line():
    """With one tolerance not zero, the exact range is that of the network along a line."""
    net = mlp(4, 8, 8, 1, seed=6)
    epsilon = torch.tensor([0.0, 0.0, 0.7, 0.0], dtype=torch.float64)
    box = _box(3, 4, epsilon)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64).view(-1, 1, 1)
    with torch.no_grad():
        values = net((box.lower + t * (box.upper - box.lower)).flatten(0, 1)).view(-1, 3)
    found = branch_and_bound(trace(net, (4,)), box).attained
    assert torch.allclose(found.lower, values.amin(0), atol=1e-4)
    assert torch.allclose(found.upper, values.amax(0), atol=1e-4)
    crown = crown_bounds(trace(net, (4,)), box)
    assert (crown.lower[:, 0] <= values.amin(0)).all()


def test_what_no_exact_bound_is_known_for():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    box = _box(1, 2, 0.1)
    for method in (milp_bounds, branch_and_bound, lp_bounds):
        with pytest.raises(Unsupported, match="ReLU networks only"):
            method(trace(net, (2,)), box)
        with pytest.raises(Unsupported, match="box"):
            method(trace(mlp(2, 3, 1), (2,)), Ball.around(box.centre, 0.1))
    with pytest.raises(ValueError, match="one output"):
        milp_bounds(trace(mlp(2, 3, 2), (2,)), box)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)), "Softmax"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "LayerNorm"),
    ],
)
def test_unknown_layers_are_named(module, name):
    with pytest.raises(Unsupported, match=name):
        trace(module, (2,))


def test_max_pooling_has_interval_bounds_only():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 1)
    )
    network, box = trace(net, (1, 6, 6)), Box.around(torch.rand(2, 1, 6, 6), 0.05)
    lower, upper = interval_bounds(network, box)
    assert (lower <= upper).all()
    with pytest.raises(Unsupported, match="MaxPool2d"):
        crown_bounds(network, box)


def test_tracing_leaves_the_module_alone():
    net = Residual()
    net.train()
    before = net.norm.running_mean.clone()
    trace(net, (1, 7, 7))
    assert net.training
    assert net.norm.training
    assert torch.equal(net.norm.running_mean, before)
