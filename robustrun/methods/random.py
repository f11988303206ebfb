"""Random numbers that belong to examples: Philox4x32-10, a counter-based generator, in torch integers.

A number depends on (seed, index of the example, stream, position) alone: not on the batch it is drawn in, the
device, or the order of evaluation. So a certification may be resumed, split or re-batched and gives the same
result. Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_CPU_CHUNK, _GPU_CHUNK = 1 << 14, 1 << 22  # counters at a time: what stays in the cache, or fits the memory


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four counter words and two key words to four random words.

    Args:
        counter: four int64 tensors of one shape, with values in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # 64-bit products may wrap into the sign; what is above the low word of a sum is masked away below.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_LOW)
        c2 = (product0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_LOW)
        c1, c3 = product1, product0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1 & _LOW, c2, c3 & _LOW


def uniform(
    seed: int,
    indices: Tensor,
    shape: Sequence[int],
    stream: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24: (B, *shape), on the device of `indices`.

    Args:
        seed: in [0, 2**64).
        indices: (B,) int64, non-negative: which examples the numbers belong to.
        shape: of one example's numbers. Only their order counts: a longer draw begins with a shorter one.
        stream: in [0, 2**32), a number or one an example (B,): other numbers for the same example.
        dtype: of the result.
    """

    def scale(*words: Tensor) -> list[Tensor]:
        return [(word >> 8).to(dtype) * 2**-24 for word in words]

    return _draw(seed, indices, shape, stream, dtype, scale)


def normal(
    seed: int,
    indices: Tensor,
    shape: Sequence[int],
    stream: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers (Box-Muller, from 32-bit uniforms); arguments and result as in `uniform`."""

    def box_muller(w0: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> list[Tensor]:
        numbers = []
        for first, second in ((w0, w1), (w2, w3)):
            radius = ((first + 1).to(dtype) * 2**-32).log_().mul_(-2).sqrt_()
            angle = second.to(dtype) * (2 * math.pi * 2**-32)
            numbers += [radius * angle.cos(), radius * angle.sin()]
        return numbers

    return _draw(seed, indices, shape, stream, dtype, box_muller)


class ExampleGenerator:
    """Draws for a batch of examples, each from a new stream: takes a generator's place in the attacks."""

    def __init__(self, seed: int, indices: Tensor, stream: int = 0):
        self.seed, self.indices, self.stream = seed, indices, stream

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) uniform in [0, 1)."""
        self.stream += 1
        return uniform(self.seed, self.indices, shape, self.stream - 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normal."""
        self.stream += 1
        return normal(self.seed, self.indices, shape, self.stream - 1)


def _draw(
    seed: int,
    indices: Tensor,
    shape: Sequence[int],
    stream: int | Tensor,
    dtype: torch.dtype,
    transform: Callable[..., list[Tensor]],
) -> Tensor:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed lies in [0, 2**64), {seed} does not")
    if not isinstance(stream, Tensor) and not 0 <= stream <= _LOW:
        raise ValueError(f"a stream lies in [0, 2**32), {stream} does not")
    count = math.prod(shape)
    blocks = -(-count // 4)  # a counter gives four numbers
    numbers = torch.empty(len(indices) * blocks, 4, dtype=dtype, device=indices.device)
    for begin, counter in _counters(indices, stream, blocks):
        words = philox(counter, (seed & _LOW, seed >> 32))
        torch.stack(transform(*words), 1, out=numbers[begin : begin + len(counter[0])])
    return numbers.view(len(indices), 4 * blocks)[:, :count].reshape(len(indices), *shape)


def _counters(
    indices: Tensor, stream: int | Tensor, blocks: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Chunks of the counters (block, stream, low and high word of the index), example by example."""
    chunk = _CPU_CHUNK if indices.device.type == "cpu" else _GPU_CHUNK
    streams = torch.as_tensor(stream, dtype=torch.int64, device=indices.device).expand(len(indices))
    for begin in range(0, len(indices) * blocks, chunk):
        flat = torch.arange(begin, min(begin + chunk, len(indices) * blocks), device=indices.device)
        row = flat // blocks
        index = indices[row]
        yield begin, (flat - row * blocks, streams[row], index & _LOW, index >> 32)
