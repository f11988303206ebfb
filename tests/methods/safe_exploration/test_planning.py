import numpy as np
import pytest
from scipy.optimize import linprog

from robustrun.methods.safe_exploration import MASKED, Knowledge, Model, Planner, Support, moved_mass
from robustrun.methods.safe_exploration.analogies import Analogies

from .mdps import knowledge_of, model_of, random_mdp


def backup(probability, values, radius, mask, optimism=1, dtype=np.float64):
    """One backup of pair (0, 0) of an MDP whose states have the given values; gamma = 1, reward 0."""
    n_states = len(values)
    outcomes = np.where(mask, np.arange(n_states), -1)[None]
    knowledge = Knowledge(
        np.zeros(n_states),
        np.zeros(n_states, dtype=bool),
        outcomes,
        np.zeros((n_states, 1), dtype=int),
        np.zeros((n_states, 1), dtype=bool),
        Analogies.none(n_states),
    )
    planner = Planner(Support(knowledge), gamma=1.0, horizon=1, dtype=dtype)
    slots = np.flatnonzero(probability)
    model = Model(
        np.array([0]),
        slots[:, None],
        probability[slots, None].astype(dtype),
        np.array([radius], dtype=dtype),
        mask[slots][:, None],
        np.array([False]),
    )
    from robustrun.methods.safe_exploration.planning import _Rows

    q = np.zeros(n_states, dtype=dtype)
    live = np.zeros((n_states, 1), dtype=bool)
    live[0] = True
    _Rows(planner, model, np.zeros((n_states, 1), dtype=dtype), live, optimism).sweep(values.astype(dtype), q)
    return q[0]


HAND = np.array([0.3, 0.4, 0.3])


@pytest.mark.parametrize(
    ("radius", "optimism", "value"), [(0, 1, 1), (0.4, 1, 1.4), (1, 1, 1.8), (2, 1, 2), (0.4, -1, 0.6)]
)
def test_backup_by_hand(radius, optimism, value):
    mask = np.ones(3, dtype=bool)
    assert backup(HAND, np.array([0.0, 1, 2]), radius, mask, optimism) == pytest.approx(value, abs=1e-12)


def test_mass_enters_the_mask_only():
    values, probability = np.array([0.0, 1, 2, 5]), np.append(HAND, 0)
    assert backup(probability, values, 0.4, np.array([1, 1, 1, 1], dtype=bool)) == pytest.approx(1 + 0.2 * 5)
    assert backup(probability, values, 0.4, np.array([1, 1, 1, 0], dtype=bool)) == pytest.approx(1.4)
    assert backup(probability, values, 0.4, np.zeros(4, dtype=bool)) == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
def test_backup_equals_the_linear_programme(dtype, tolerance):
    rng = np.random.default_rng(3)
    for _ in range(100):
        n = rng.integers(3, 13)
        values = rng.normal(size=n).astype(dtype).astype(float)
        t = np.where(rng.random(n) < 0.6, rng.random(n), 0)
        t[rng.integers(n)] += 0.1
        t = (t / t.sum()).astype(dtype).astype(float)
        mask, radius = rng.random(n) < 0.7, float(dtype(rng.random() * 2))
        # T' = t + up - down, up only inside the mask, |T' - t|_1 <= radius
        budget = np.ones((1, 2 * n))
        balance = np.concatenate([np.ones(n), -np.ones(n)])[None]
        bounds = [(0, 1 if inside else 0) for inside in mask] + [(0, mass) for mass in t]
        solved = linprog(-np.append(values, -values), budget, [radius], balance, [0.0], bounds)
        assert abs(backup(t, values, radius, mask, dtype=dtype) - (t @ values - solved.fun)) < tolerance


@pytest.mark.parametrize("n_slots", [1, 3, 6, 9])
def test_moved_mass_takes_the_worst_first(n_slots):
    rng = np.random.default_rng(n_slots)
    values = rng.integers(0, 4, (n_slots, 50)).astype(float)  # with ties
    t = rng.dirichlet(np.ones(n_slots), 50).T
    budget = rng.random(50)
    moved = moved_mass(values, t, budget)
    for column in range(50):
        left = budget[column]
        for k in np.argsort(values[:, column], kind="stable"):
            mass = min(left, t[k, column])
            assert moved[k, column] == pytest.approx(mass, abs=1e-12)
            left -= mass
    assert moved.sum(axis=0) == pytest.approx(np.minimum(budget, 1))


@pytest.mark.parametrize("seed", range(20))
def test_optimistic_and_pessimistic_values_bracket_the_truth(seed):
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng)
    knowledge = knowledge_of(mdp, np.zeros((6, 2), dtype=bool))
    planner = Planner(Support(knowledge), gamma=0.9, horizon=60)
    reward = mdp.reward[:, None]
    truth = planner.solve(model_of(mdp), reward).q
    noise = rng.random() * 0.5
    noisy = model_of(mdp, radius=noise, noise=noise)
    assert (planner.solve(noisy, reward, optimism=1).q >= truth - 1e-5).all()
    assert (planner.solve(noisy, reward, optimism=-1).q <= truth + 1e-5).all()
    for optimism in (-1, 0):
        assert planner.solve(model_of(mdp), reward, optimism=optimism).q == pytest.approx(truth, abs=1e-6)


def test_value_iteration_against_plain_loops():
    mdp = random_mdp(np.random.default_rng(5))
    planner = Planner(Support(knowledge_of(mdp, np.zeros((6, 2), dtype=bool))), gamma=0.9, horizon=7, dtype=np.float64)
    allowed = np.random.default_rng(6).random((6, 2)) < 0.8
    fixed = np.zeros((6, 2), dtype=bool)
    fixed[0, 1] = True
    plan = planner.solve(model_of(mdp), mdp.reward[:, None], allowed=allowed, fixed=fixed, fixed_value=0.7)
    values = np.zeros(6)
    for _ in range(7):
        q = np.full((6, 2), MASKED)
        for s, a in np.argwhere(allowed):
            q[s, a] = mdp.reward[s]
            if fixed[s, a] and not mdp.terminal[s]:
                q[s, a] = 0.7
            elif not mdp.terminal[s]:
                q[s, a] += 0.9 * (mdp.probabilities[s, a] * values[mdp.successors[s, a]]).sum()
        values = q.max(axis=1)
    assert plan.q == pytest.approx(q, abs=1e-6)


def test_sweeps_stop_when_values_stand_still():
    mdp = random_mdp(np.random.default_rng(7), goal=0.5, fail=0)
    support = Support(knowledge_of(mdp, np.zeros((6, 2), dtype=bool)))
    long = Planner(support, gamma=0.5, horizon=1000).solve(model_of(mdp), mdp.reward[:, None])
    loose = Planner(support, gamma=0.5, horizon=1000, tolerance=1e-2).solve(model_of(mdp), mdp.reward[:, None])
    assert loose.sweeps < long.sweeps < 100
    assert loose.q == pytest.approx(long.q, abs=2e-2)


def test_unknown_pairs_are_worth_the_best_they_could_reach():
    mdp = random_mdp(np.random.default_rng(8), goal=0.5, fail=0)
    planner = Planner(Support(knowledge_of(mdp, np.zeros((6, 2), dtype=bool))), gamma=0.5, horizon=20)
    slots, rows = np.zeros((0, 0), dtype=int), np.zeros(0, dtype=int)
    blank = Model(rows, slots, slots.astype(float), rows.astype(float), slots.astype(bool), rows.astype(bool))
    optimistic = planner.solve(blank, mdp.reward[:, None]).q
    assert optimistic[~mdp.terminal] == pytest.approx(0.5)
    nominal = planner.solve(blank, mdp.reward[:, None], optimism=0).q
    assert (nominal[~mdp.terminal] < 0.5).all()
