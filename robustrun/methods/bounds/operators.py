"""What the nodes of a network do, each as four linear-algebra questions.

    forward(*inputs)          its value
    interval(*bounds)         the box around its values over boxes of inputs
    backward(coefficients)    for affine nodes: coefficients (1 or batch, rows, *out) on the output become
                              coefficients on each input and a constant (1 or batch, rows)
    absolute(*magnitudes)     the largest sum of absolute values met while computing it, for rounding margins

Weights are read through callables, at every call: bounds follow training and carry its gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustrun.methods.bounds.regions import Bounds
from robustrun.methods.bounds.unsupported import Unsupported

Getter = Callable[[], Tensor | None]


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """(rows-wise) sum of coefficients (1|batch, rows, *shape) times values (*shape)."""
    return coefficients.flatten(2) @ values.flatten()


@dataclass(frozen=True)
class Linear:
    """x W^T + b."""

    weight: Getter
    bias: Getter
    fan_in: int

    def forward(self, x: Tensor) -> Tensor:
        """The value of the node, (batch, *out)."""
        return F.linear(x, self.weight(), self.bias())

    def interval(self, x: Bounds) -> Bounds:
        """The box around its values over boxes of inputs."""
        centre, radius = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
        centre, radius = self.forward(centre), F.linear(radius, self.weight().abs())
        return Bounds(centre - radius, centre + radius)

    def backward(self, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Coefficients on the inputs, and the constant or None, from those on the output (1 or batch, rows, *out).

        Raises:
            Unsupported: the node is not affine.
        """
        bias = self.bias()
        return (a @ self.weight(),), None if bias is None else a @ bias

    def absolute(self, x: Tensor) -> Tensor:
        """The largest sum of absolute values met while computing it."""
        bias = self.bias()
        return F.linear(x, self.weight().abs(), None if bias is None else bias.abs())


@dataclass(frozen=True)
class Conv2d:
    """A convolution of images (batch, *input_shape) with the options of `torch.nn.functional.conv2d`."""

    weight: Getter
    bias: Getter
    fan_in: int
    input_shape: tuple[int, ...]
    options: dict  # stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias(), **self.options)

    def interval(self, x: Bounds) -> Bounds:
        centre, radius = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
        centre, radius = self.forward(centre), F.conv2d(radius, self.weight().abs(), **self.options)
        return Bounds(centre - radius, centre + radius)

    def backward(self, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        flat, bias = a.flatten(0, 1), self.bias()
        size = (flat.shape[0], *self.input_shape)
        back = torch.nn.grad.conv2d_input(size, self.weight(), flat, **self.options)
        return (back.unflatten(0, a.shape[:2]),), None if bias is None else a.sum((-2, -1)) @ bias

    def absolute(self, x: Tensor) -> Tensor:
        bias = self.bias()
        return F.conv2d(x, self.weight().abs(), None if bias is None else bias.abs(), **self.options)


@dataclass(frozen=True)
class Scale:
    """x * scale + shift, elementwise: constants, evaluation-mode batch normalisation, negation."""

    scale: Getter
    shift: Getter
    fan_in: int = 1

    def _values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def expand(value: Tensor | None, default: float) -> Tensor:
            value = default if value is None else value
            return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like[:1])[0]

        return expand(self.scale(), 1.0), expand(self.shift(), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._values(x)
        return x * scale + shift

    def interval(self, x: Bounds) -> Bounds:
        scale, shift = self._values(x.lower)
        ends = x.lower * scale + shift, x.upper * scale + shift
        return Bounds(torch.minimum(*ends), torch.maximum(*ends))

    def backward(self, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        scale, shift = self._values(a[0])
        return (a * scale,), _dot(a, shift)

    def absolute(self, x: Tensor) -> Tensor:
        scale, shift = self._values(x)
        return x * scale.abs() + shift.abs()


@dataclass(frozen=True)
class Monotone:
    """A function that keeps the order of its inputs: reshaping, slicing, average and max pooling, sums.

    Where it is also linear, coefficients pass through it as its vector-Jacobian product.
    """

    function: Callable[[Tensor], Tensor]
    input_shape: tuple[int, ...]
    linear: bool
    name: str
    fan_in: int

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def interval(self, x: Bounds) -> Bounds:
        return Bounds(self.function(x.lower), self.function(x.upper))

    def backward(self, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if not self.linear:
            raise Unsupported(f"linear bounds cannot pass through {self.name}; interval bounds can")
        zeros = torch.zeros((a.shape[0] * a.shape[1], *self.input_shape), dtype=a.dtype, device=a.device)
        _, pull = torch.func.vjp(self.function, zeros)
        return (pull(a.flatten(0, 1))[0].unflatten(0, a.shape[:2]),), None

    def absolute(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Sum:
    """x + sign * y: a residual connection."""

    sign: int
    fan_in: int = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.sign * y

    def interval(self, x: Bounds, y: Bounds) -> Bounds:
        if self.sign < 0:
            y = Bounds(-y.upper, -y.lower)
        return Bounds(x.lower + y.lower, x.upper + y.upper)

    def backward(self, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        return (a, self.sign * a), None

    def absolute(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


Affine = Linear | Conv2d | Scale | Monotone | Sum
