"""Blocks on threads: in order, without gradients, and torch's own settings as they were."""

import pytest
import torch

from robustrun.methods.threads import map_blocks


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_blocks_come_back_in_order(threads, count):
    torch.set_num_threads(count)
    weight = torch.ones(4, requires_grad=True)

    def double(block):
        assert torch.get_num_threads() == 1
        return 2 * weight * block

    results = map_blocks(double, torch.arange(28.0).view(7, 4))
    assert torch.equal(torch.stack(results), 2 * torch.arange(28.0).view(7, 4))
    assert not any(result.requires_grad for result in results)
    assert torch.get_num_threads() == count
    assert torch.is_grad_enabled()


def test_an_error_of_a_block_is_raised_and_leaves_the_settings(threads):
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        map_blocks(lambda block: 1 // block, [1, 0, 1])
    assert torch.get_num_threads() == 2
