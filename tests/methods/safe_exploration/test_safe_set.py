import numpy as np
import pytest

from robustrun.methods.safe_exploration import Support, safe_set

from .mdps import chain, knowledge_of, model_of, random_mdp


def of_chain(**kwargs):
    mdp = chain(**kwargs)
    initial = np.zeros((4, 3), dtype=bool)
    initial[0, 0] = True
    support = Support(knowledge_of(mdp, initial))
    return safe_set(initial, np.ones((4, 3), dtype=bool), model_of(mdp), support)


def test_a_trap_that_closing_opens_is_found():
    expected = np.zeros((4, 3), dtype=bool)
    expected[0] = True
    expected[1, [0, 2]] = True
    assert (of_chain() == expected).all()


def test_without_the_trap_all_is_safe():
    assert of_chain(fail=0.0)[:3].all()
    assert not of_chain(fail=0.0)[3].any()


def test_goals_need_no_way_back():
    assert of_chain(goal=True)[:3].all()


def by_definition(mdp, initial, known):
    """The same set, by loops over sets of pairs."""
    fail, goal = set(np.flatnonzero(mdp.unsafe)), set(np.flatnonzero(mdp.goal))
    successors = {
        (s, a): {int(n) for n, p in zip(mdp.successors[s, a], mdp.probabilities[s, a], strict=True) if p > 0}
        for s in range(mdp.n_states)
        for a in range(mdp.n_actions)
    }
    z = {tuple(p) for p in np.argwhere(initial).tolist()}
    candidates = {tuple(p) for p in np.argwhere(known & ~initial).tolist()}
    goals = {(s, a) for s in goal for a in range(mdp.n_actions)}
    while True:
        reach, grown = set(), True
        while grown:
            grown = False
            hit = {n for p in z | reach for n in successors[p]} - fail
            for p in candidates - reach:
                if p[0] in {q[0] for q in z} or p[0] in hit:
                    reach.add(p)
                    grown = True
        back, grown = set(goals), True
        while grown:
            grown = False
            owners = {q[0] for q in z | back}
            for p in reach - back:
                if (successors[p] - fail) & owners:
                    back.add(p)
                    grown = True
        while True:
            owners = {q[0] for q in z | back}
            bad = {
                p
                for p in back
                if p[0] not in goal and any(n in fail or (n not in goal and n not in owners) for n in successors[p])
            }
            if not bad:
                break
            back -= bad
        if back == candidates:
            return z | back
        candidates = back


def initial_of(mdp, rng):
    """One pair of the start: a safe set need not be closed for these tests."""
    initial = np.zeros((mdp.n_states, mdp.n_actions), dtype=bool)
    initial[0, rng.integers(mdp.n_actions)] = True
    return initial


def test_against_the_definition():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        mdp = random_mdp(rng, n_states=7, n_successors=int(rng.integers(1, 4)))
        known = rng.random((7, 2)) < 0.85
        initial = initial_of(mdp, rng)
        found = safe_set(initial, known, model_of(mdp), Support(knowledge_of(mdp, initial)))
        assert {tuple(p) for p in np.argwhere(found).tolist()} == by_definition(mdp, initial, known), seed


@pytest.mark.parametrize("seed", range(30))
def test_names_of_states_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    mdp = random_mdp(rng, n_states=7)
    known = rng.random((7, 2)) < 0.85
    initial = initial_of(mdp, rng)
    new = rng.permutation(7)  # state s is called new[s]
    old = np.argsort(new)
    from robustrun.methods.safe_exploration import TabularMDP

    renamed = TabularMDP(
        new[mdp.successors[old]], mdp.probabilities[old], mdp.reward[old], mdp.terminal[old], int(new[0])
    )
    first = safe_set(initial, known, model_of(mdp), Support(knowledge_of(mdp, initial)))
    again = safe_set(initial[old], known[old], model_of(renamed), Support(knowledge_of(renamed, initial[old])))
    assert (again == first[old]).all()
