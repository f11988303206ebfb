import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustrun.runtime.seeds import derive_seed, global_state, restore_global_state, seed_globals

parts = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))


def test_the_seed_is_the_same_on_every_machine_for_ever():
    assert derive_seed(0, "attack", 3) == 6255186145615678940
    assert derive_seed(0) == 6197007067532723406


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**63), st.lists(parts, max_size=4), st.lists(parts, max_size=4))
def test_different_names_give_different_seeds(seed, key, other):
    assert 0 <= derive_seed(seed, *key) < 2**63
    same = [(type(a), a) for a in key] == [(type(b), b) for b in other]
    signs = [str(a) for a in key] == [str(b) for b in other]  # 0.0 and -0.0 are equal, and differ
    assert (derive_seed(seed, *key) == derive_seed(seed, *other)) == (same and signs)


def test_numpy_and_torch_integers_are_integers():
    assert derive_seed(1, np.int64(5)) == derive_seed(1, 5) == derive_seed(1, torch.tensor(5))
    assert derive_seed(1, ("a", 2)) != derive_seed(1, "a", 2)
    with pytest.raises(TypeError, match="named by strings and numbers"):
        derive_seed(1, object())


def draws():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]  # noqa: NPY002


def test_global_generators_are_restored():
    seed_globals(3)
    first = draws()
    state = global_state()
    expected = draws()
    restore_global_state(state)
    assert draws() == expected
    seed_globals(3)
    assert draws() == first


def test_generators_depend_on_their_name_alone(run):
    expected = torch.rand(4, generator=run.generator("noise", 7))
    torch.rand(5)
    run.generator("noise", 6)
    assert torch.rand(4, generator=run.generator("noise", 7)).equal(expected)
    assert not torch.rand(4, generator=run.generator("noise", 8)).equal(expected)
