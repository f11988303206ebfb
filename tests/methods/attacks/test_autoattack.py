import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from robustrun.methods.attacks import (
    Ball,
    apgd,
    apgd_targeted,
    autoattack,
    fab_targeted,
    norms,
    pgd,
    square,
)
from robustrun.methods.attacks.apgd import checkpoints
from robustrun.methods.attacks.fab import to_plane
from robustrun.methods.attacks.square import _bump, _filled, _tiles, patch_side
from tests.methods.attacks.networks import Counted, Linear2, convnet, mlp

SINGLE = {
    "apgd": lambda *a, **k: apgd(*a, steps=30, **k),
    "apgd_dlr": lambda *a, **k: apgd(*a, steps=30, loss="dlr", **k),
    "apgd_targeted": lambda *a, **k: apgd_targeted(*a, steps=20, targets=3, **k),
    "fab_targeted": lambda *a, **k: fab_targeted(*a, steps=20, targets=3, **k),
    "square": lambda *a, **k: square(*a, queries=200, **k),
}
THREATS = [("linf", 0.03), ("l2", 0.15)]


@pytest.mark.parametrize(("norm", "epsilon"), THREATS)
@pytest.mark.parametrize("name", SINGLE)
def test_invariants(name, norm, epsilon):
    net, x = convnet().train(), torch.rand(60, 3, 8, 8).mul(1.2).clamp(0, 1)
    radius = epsilon * torch.linspace(0, 2, 60)
    net.eval()
    y = net(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    counted = Counted(net)
    result = SINGLE[name](counted, x, y, norm=norm, epsilon=radius)
    assert (norms(result.delta, norm) <= radius * (1 + 1e-5) + 1e-8).all()
    assert (x + result.delta).min() >= -1e-7
    assert (x + result.delta).max() <= 1 + 1e-7
    assert result.forwards == counted.examples or name == "apgd_targeted"  # which ranks the classes first
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    net.eval()
    assert torch.equal(result.success, net(x + result.delta).argmax(1) != y)
    assert result.success[::7].all()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_linear_model_has_the_robust_accuracy_of_the_dual_norm(norm, dual):
    torch.manual_seed(0)
    w = torch.randn(3, 4, 4).double()
    x, y = 0.4 + 0.2 * torch.rand(300, 3, 4, 4).double(), torch.randint(2, (300,))
    net = Linear2(w.flatten(), b=-0.5 * w.sum().item())
    signed = (2 * y - 1) * (x - 0.5).flatten(1).matmul(w.flatten())
    distance = signed / torch.linalg.vector_norm(w.flatten(), ord=dual)
    epsilon = distance[distance > 0].median().item()
    robust = distance > epsilon
    for loss in ("cross_entropy", "margin"):
        found = apgd(net, x, y, norm=norm, epsilon=epsilon, steps=40, loss=loss)
        wrong = found.success == robust
        assert not wrong[(distance - epsilon).abs() > 0.01 * epsilon].any()
    found = fab_targeted(net, x, y, norm=norm, epsilon=epsilon, steps=20)
    wrong = found.success == robust
    assert not wrong[(distance - epsilon).abs() > 0.01 * epsilon].any()
    # The distance itself, where it was not needed to stop early.
    torch.testing.assert_close(found.loss[robust], distance[robust], rtol=0.06, atol=0)


@pytest.mark.parametrize(("norm", "epsilon"), THREATS)
def test_apgd_is_stronger_than_pgd(norm, epsilon):
    net, x = mlp(hidden=64, classes=10), torch.rand(400, 1, 4, 4)
    y = net(x).argmax(1)
    options = {"norm": norm, "epsilon": epsilon}
    plain = pgd(net, x, y, alpha=epsilon / 4, steps=50, select="any_break", **options)
    for loss in ("cross_entropy", "dlr"):
        assert apgd(net, x, y, steps=50, loss=loss, **options).success.sum() >= plain.success.sum() - 2
    targeted = apgd_targeted(net, x, y, steps=50, **options)
    assert targeted.success.sum() > plain.success.sum()
    assert fab_targeted(net, x, y, steps=50, **options).success.sum() >= targeted.success.sum() - 3


@pytest.mark.parametrize("targeted", [False, True])
def test_examples_do_not_influence_each_other(targeted):
    net, x = mlp(), torch.rand(80, 1, 4, 4)
    y = net(x).argmax(1)
    noise = Ball(x, "linf", 1.0).start()

    class Rows:  # draws that belong to the examples
        def __init__(self, rows):
            self.rows = rows

        def uniform(self, shape):
            return (noise[self.rows] + 1) / 2

    attack = apgd_targeted if targeted else apgd
    options = {"epsilon": 0.04, "steps": 25}
    whole = attack(net, x, y, generator=Rows(slice(None)), **options)
    part = attack(net, x[10:25], y[10:25], generator=Rows(slice(10, 25)), **options)
    torch.testing.assert_close(whole.delta[10:25], part.delta, atol=1e-6, rtol=0)


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(6))
def test_projection_onto_a_plane_within_a_box_is_optimal(norm, seed):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=7) * (rng.random(7) > 0.2)
    low, high = -rng.random(7), rng.random(7)
    low[0], high[1] = 0, 0
    reach = np.where(normal > 0, high, low) @ normal
    value = 0.7 * reach * (1 if seed % 2 else -1)
    if seed % 2 == 0:
        value = 0.7 * (np.where(normal > 0, low, high) @ normal)
    tensors = (torch.tensor(a)[None] for a in (normal, low, high))
    normal_t, low_t, high_t = tensors
    d = to_plane(normal_t, torch.tensor([value]), norm, low_t, high_t)[0].numpy()
    assert normal @ d == pytest.approx(value, abs=1e-10)
    assert (d >= low - 1e-12).all()
    assert (d <= high + 1e-12).all()
    if norm == "linf":  # min t with -t <= d <= t
        rows = np.block([[np.eye(7), -np.ones((7, 1))], [-np.eye(7), -np.ones((7, 1))]])
        best = linprog(
            np.r_[np.zeros(7), 1],
            A_ub=rows,
            b_ub=np.zeros(14),
            A_eq=np.r_[normal, 0][None],
            b_eq=[value],
            bounds=[*zip(low, high, strict=True), (0, None)],
        ).fun
        assert np.abs(d).max() == pytest.approx(best, abs=1e-8)
    else:
        best = minimize(
            lambda v: v @ v,
            np.zeros(7),
            jac=lambda v: 2 * v,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda v: normal @ v - value},
        )
        assert d @ d == pytest.approx(best.fun, abs=1e-6)


def test_a_plane_out_of_reach_gives_the_nearest_corner_and_no_gradient_no_move():
    normal = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1.0, -2.0]])
    low, high = torch.full((3, 2), -0.25), torch.full((3, 2), 0.5)
    for norm in ("linf", "l2"):
        d = to_plane(normal, torch.tensor([9.0, 1.0, 0.0]), norm, low, high)
        assert torch.equal(d, torch.tensor([[0.5, -0.25], [0.0, 0.0], [0.0, 0.0]]))
    free = to_plane(normal, torch.tensor([5.0, 1.0, 0.0]), "l2", None, None)
    torch.testing.assert_close(free, torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.0, 0.0]]))


def test_a_proposal_of_square_takes_the_whole_radius_that_the_box_leaves():
    inputs = torch.rand(20, 1, 6, 6).round()  # in corners of the box: half of every direction is cut off
    ball = Ball(inputs, "l2", 1.0)
    delta = torch.randn(20, 1, 6, 6)
    filled = _filled(ball, delta)
    assert ((inputs + filled) >= 0).all()
    assert ((inputs + filled) <= 1).all()
    assert (norms(filled, "l2") <= 1 + 1e-6).all()
    assert (norms(filled, "l2") > 0.99).all()
    assert (norms(ball.project(delta), "l2") < 0.9).all()
    assert ((filled == 0) | (filled.sign() == delta.sign())).all()


def test_square_needs_no_gradient_and_only_improves():
    net = Counted(mlp())
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(100, 1, 4, 4)
    y = net.network(x).argmax(1)
    previous = None
    for queries in (2, 20, 100, 300):
        found = square(net, x, y, epsilon=0.05, queries=queries, generator=torch.Generator().manual_seed(0))
        assert found.backwards == 0
        if previous is not None:
            assert found.success.sum() >= previous
        previous = found.success.sum()
    strong = apgd(net, x, y, epsilon=0.05, loss="dlr")
    assert previous >= 0.8 * strong.success.sum() > 10


def test_patches_shrink_along_the_schedule():
    sides = [patch_side(0.8, query, 5000, (32, 32)) for query in range(5000)]
    assert sides[0] == round((0.8 * 1024) ** 0.5)
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == round((0.8 / 512 * 1024) ** 0.5)
    assert patch_side(0.01, 4999, 5000, (4, 4)) == 1


def test_the_l2_start_spends_the_whole_radius():
    bump = _bump(5, 5)
    assert torch.equal(bump, bump.flip(0))
    assert bump[2, 2] == bump.max() == pytest.approx(1 / 9 + 1 / 4 + 1)

    class Signs:
        def signs(self, *shape):
            return torch.ones(2, *shape)

    for size in (3, 8, 28):
        ball = Ball(torch.full((2, 3, size, size), 0.5), "l2", 0.4)
        torch.testing.assert_close(norms(_tiles(ball, Signs()), "l2"), torch.full((2,), 0.4))


@pytest.mark.parametrize(("norm", "epsilon"), THREATS)
def test_the_ensemble_breaks_what_its_members_break(norm, epsilon):
    net, x = Counted(mlp(hidden=64, classes=10)), torch.rand(150, 1, 4, 4)
    y = net.network(x).argmax(1)
    y[:5] = (y[:5] + 1) % 10
    result = autoattack(net, x, y, norm=norm, epsilon=epsilon, steps=30, queries=200, batch_size=64)
    assert torch.equal(result.success, net.network(x + result.delta).argmax(1) != y)
    assert (result.broken_by[:5] == -1).all()
    assert not result.delta[:5].any()
    accuracies = list(result.robust_accuracy.values())
    assert list(result.robust_accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert accuracies[0] == pytest.approx(145 / 150)
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == 1 - result.success.double().mean().item()
    single = apgd(net, x, y, norm=norm, epsilon=epsilon, steps=30)
    assert result.success.sum() >= single.success.sum()


def test_no_pass_is_made_for_nothing():
    """Of no survivors, no batch: not every model takes an empty one."""
    net, x = mlp(classes=10), torch.rand(20, 1, 4, 4)
    sizes = []

    def watched(points):
        sizes.append(len(points))
        return net(points)

    result = autoattack(watched, x, (net(x).argmax(1) + 1) % 10, epsilon=0.05, steps=5, queries=20)
    assert result.robust_accuracy == dict.fromkeys(["clean", "apgd-ce", "apgd-t", "fab-t", "square"], 0.0)
    assert sizes == [20]


def test_few_classes_and_unknown_names():
    net, x = mlp(classes=3), torch.rand(40, 1, 4, 4)
    y = net(x).argmax(1)
    result = autoattack(net, x, y, epsilon=0.05, steps=10, queries=20)
    assert list(result.robust_accuracy) == ["clean", "apgd-ce", "apgd-dlr", "fab-t", "square"]
    with pytest.raises(ValueError, match="unknown attacks"):
        autoattack(net, x, y, epsilon=0.05, attacks=["apgd"])
    with pytest.raises(ValueError, match="four classes"):
        apgd_targeted(net, x, y, epsilon=0.05)
    with pytest.raises(ValueError, match="images"):
        square(mlp(), torch.rand(3, 16), torch.zeros(3, dtype=torch.long), epsilon=0.1)
