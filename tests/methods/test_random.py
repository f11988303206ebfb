import pytest
import scipy.stats
import torch

from robustrun.methods.random import ExampleGenerator, normal, philox, uniform


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that the generator's authors publish
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, words):
    result = philox([torch.tensor([c]) for c in counter], tuple(key))
    assert [w.item() for w in result] == words


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_belong_to_the_example_not_to_the_batch(draw):
    indices = torch.tensor([5, 0, 2**33 + 5, 17, 5])
    together = draw(11, indices, (3, 37, 29), stream=4)
    assert together.shape == (5, 3, 37, 29)
    for row, index in enumerate(indices):
        assert torch.equal(draw(11, index[None], (3, 37, 29), stream=4)[0], together[row])
    assert torch.equal(together[0], together[4])
    assert not torch.equal(together[0], together[2])
    assert torch.equal(draw(11, indices, (10,), stream=4), together.flatten(1)[:, :10])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seed_index_and_stream_give_independent_numbers(draw):
    indices = torch.arange(4)
    draws = torch.cat([draw(seed, indices, (5000,), stream=stream) for seed in (0, 1, 2**40) for stream in (0, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / 5000**0.5


def test_streams_may_differ_by_example():
    indices, streams = torch.tensor([3, 3, 8]), torch.tensor([0, 9, 2])
    together = normal(1, indices, (6,), stream=streams)
    for i in range(3):
        assert torch.equal(together[i], normal(1, indices[i : i + 1], (6,), stream=int(streams[i]))[0])


def test_distributions():
    indices = torch.arange(100)
    u, z = uniform(3, indices, (1000,)), normal(3, indices, (1000,))
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    assert scipy.stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert u.min() >= 0
    assert u.max() < 1
    assert z.isfinite().all()
    tail = normal(4, torch.arange(200), (5000,)).abs() > 4
    assert 30 < tail.sum() < 100  # 63 expected of a million
    assert normal(3, indices, (3,), dtype=torch.float64).dtype == torch.float64


def test_generator_draws_a_new_stream_each_time():
    whole, part = ExampleGenerator(7, torch.arange(10)), ExampleGenerator(7, torch.tensor([4, 6]))
    for shape in ((2, 3), (), (5,)):
        assert torch.equal(whole.uniform(shape)[[4, 6]], part.uniform(shape))
        assert torch.equal(whole.normal(shape)[[4, 6]], part.normal(shape))
    assert not torch.equal(whole.uniform((4,)), whole.uniform((4,)))


def test_bounds():
    with pytest.raises(ValueError, match="seed"):
        uniform(-1, torch.arange(2), (3,))
    with pytest.raises(ValueError, match="stream"):
        uniform(0, torch.arange(2), (3,), stream=2**32)
    assert uniform(0, torch.arange(0), (3,)).shape == (0, 3)
    assert uniform(2**64 - 1, torch.tensor([2**63 - 1]), ()).shape == (1,)


def test_generator_serves_an_attack():
    from robustrun.methods.attacks import pgd

    network = torch.nn.Linear(6, 3)
    x, y = torch.rand(8, 6), torch.randint(3, (8,))
    options = {"epsilon": 0.2, "alpha": 0.01, "steps": 2, "restarts": 2}
    for norm in ("linf", "l2"):
        whole = pgd(network, x, y, norm=norm, generator=ExampleGenerator(1, torch.arange(8)), **options)
        half = pgd(network, x[4:], y[4:], norm=norm, generator=ExampleGenerator(1, torch.arange(4, 8)), **options)
        torch.testing.assert_close(whole.delta[4:], half.delta)
