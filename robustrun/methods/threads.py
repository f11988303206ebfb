"""Blocks of independent work, one thread a core.

Operations on blocks that fit a core's cache take a fraction of a millisecond each. Shared out among the cores one by
one, they spend their time waiting for each other, the more so on a busy machine; a block a core never waits.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_blocks(function: Callable[[Item], Result], blocks: Iterable[Item]) -> list[Result]:
    """`[function(block) for block in blocks]`, on as many threads as torch uses for one operation.

    Inside, every operation runs on its thread alone, and without gradients.
    """
    blocks, threads = list(blocks), torch.get_num_threads()
    if threads == 1 or len(blocks) < 2:
        with torch.no_grad():
            return [function(block) for block in blocks]

    def alone(block: Item) -> Result:
        torch.set_num_threads(1)
        with torch.no_grad():
            return function(block)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, blocks))
    finally:
        torch.set_num_threads(threads)  # a worker's setting reaches the matrix library of the whole process
