"""The allowed perturbations: an l_inf or l_2 ball around each input, cut with the box of valid inputs."""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Start = Literal["zero", "uniform", "corners", "wide", "gaussian", "cube"]
Box = tuple[float, float] | tuple[Tensor, Tensor] | None
Radius = float | Tensor


def over_examples(value: Radius, inputs: Tensor) -> Radius:
    """A number an example, (B,), shaped to broadcast against `inputs` (B, ...); anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.view(-1, *[1] * (inputs.ndim - 1))
    return value


def pick(value: Radius, index: Tensor) -> Radius:
    """What `over_examples` made, for the examples that `index` (b,) or (B,) bool picks."""
    per_example = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] > 1
    return value[index] if per_example else value


def norms(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each example's perturbation: (B, ...) -> (B,), in float32 or better."""
    flat = delta.flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit `norm` in which the loss grows fastest, example by example.

    A coordinate (l_inf) or an example (l_2) whose gradient is exactly 0 gets 0: it stays where it is.
    """
    if norm == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: squares of tiny gradients (confident examples) must not underflow.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / over_examples(norms(gradient, "linf").clamp_min(tiny), gradient)
    return scaled / over_examples(norms(scaled, "l2").clamp_min(tiny), gradient)


class Ball:
    """{delta: |delta|_norm <= epsilon and inputs + delta in box}, for a batch of inputs (B, ...).

    Args:
        inputs: the centres, inside the box.
        norm: "linf" or "l2" (over all coordinates of an example).
        epsilon: the radius in input units: a number, one an example (B,), or any tensor that broadcasts
            against the inputs (l_inf only; e.g. (1, C, 1, 1), for data normalised by channel).
        box: smallest and largest valid value of a coordinate (numbers or broadcastable tensors), or None.

    Raises:
        ValueError: unknown norm, or a negative epsilon given as a number.
    """

    def __init__(self, inputs: Tensor, norm: Norm, epsilon: Radius, box: Box = (0.0, 1.0)):
        if norm not in ("linf", "l2"):
            raise ValueError(f"unknown norm '{norm}': it is 'linf' or 'l2'")
        if not isinstance(epsilon, Tensor) and not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, not {epsilon}")
        self.inputs, self.norm, self.box = inputs, norm, box
        self.epsilon = over_examples(epsilon, inputs)
        # With the inputs in the box, ball and box of an l_inf threat are one interval a coordinate.
        self._interval = None
        if norm == "linf" and box is not None:
            low, high = self.box_limits()
            self._interval = low.clamp_(min=-self.epsilon), high.clamp_(max=self.epsilon)

    def box_limits(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest perturbation of each coordinate that the box allows (there is one)."""
        return self.box[0] - self.inputs, self.box[1] - self.inputs

    def select(self, index: Tensor) -> "Ball":
        """The balls of the examples that `index` (integers or booleans) picks."""
        part = object.__new__(Ball)
        part.inputs, part.norm, part.box = self.inputs[index], self.norm, self.box
        part.epsilon = pick(self.epsilon, index)
        part._interval = self._interval and tuple(bound[index] for bound in self._interval)
        return part

    def project(self, delta: Tensor) -> Tensor:
        """Onto the ball, then onto the box (which never leads out of the ball again)."""
        if self._interval is not None:
            return delta.clamp(*self._interval)
        if self.norm == "linf":
            return delta.clamp(-self.epsilon, self.epsilon)
        length = over_examples(norms(delta, "l2"), delta)
        scale = self.epsilon / length.clamp_min(torch.finfo(length.dtype).tiny)
        return self.to_box(delta * scale.clamp_max(1.0))

    def to_box(self, delta: Tensor) -> Tensor:
        """Onto the box alone."""
        return delta if self.box is None else delta.clamp(*self.box_limits())

    def step(self, delta: Tensor, gradient: Tensor, alpha: Radius, clip_ball: bool = True) -> Tensor:
        """One steepest-ascent step of length `alpha`, projected (onto the box alone if not `clip_ball`)."""
        direction = steepest(gradient, self.norm)
        if isinstance(alpha, Tensor):
            delta = delta + over_examples(alpha, delta) * direction
        else:
            delta = torch.add(delta, direction, alpha=alpha)  # one pass over memory
        return self.project(delta) if clip_ball else self.to_box(delta)

    def start(self, start: Start = "uniform", generator: torch.Generator | None = None) -> Tensor:
        """Where an attack begins: (B, ...), not yet projected onto the box.

        `zero`; `uniform`: uniform in the l_inf ball, or in l_2 a uniform direction with a uniform radius
        (arXiv 2001.03994, 2002.11569); `corners`: the corners of the half-radius cube (R+FGSM, arXiv
        1705.07204); `wide`: uniform in the cube of twice the radius (N-FGSM, arXiv 2202.01181); `gaussian`:
        0.001 N(0, I) (TRADES, arXiv 1901.08573); `cube`: uniform in [-1/2, 1/2], whatever the radius. The
        last three may leave the ball. `generator` is a torch generator, or anything that has its two draws
        (see `random_like`).

        Raises:
            ValueError: no start has that name.
        """
        if start == "zero":
            return torch.zeros_like(self.inputs)
        if start in ("corners", "gaussian") or (start == "uniform" and self.norm == "l2"):
            normal = random_like(self.inputs, "normal", generator)
            if start == "gaussian":
                return 1e-3 * normal
            if start == "corners":
                return self.epsilon / 2 * normal.sign()
            per_example = normal.new_empty(normal.shape[:1])
            radius = over_examples(random_like(per_example, "uniform", generator), normal)
            return steepest(normal, "l2") * radius * self.epsilon
        if start == "uniform" and not isinstance(self.epsilon, Tensor) and _is_torch(generator):
            # One pass over memory: this is drawn at every training step.
            return torch.empty_like(self.inputs).uniform_(-self.epsilon, self.epsilon, generator=generator)
        cube = 2 * random_like(self.inputs, "uniform", generator) - 1
        match start:
            case "uniform":
                return cube * self.epsilon
            case "wide":
                return cube * (2 * self.epsilon)
            case "cube":
                return cube / 2
        raise ValueError(f"unknown start '{start}': zero, uniform, corners, wide, gaussian or cube")


def random_like(tensor: Tensor, kind: Literal["uniform", "normal"], generator: torch.Generator | None = None) -> Tensor:
    """Uniform [0, 1) or standard normal numbers of a tensor's shape, memory format and device.

    `generator` may also be an object with methods `uniform(shape)` and `normal(shape)`, such as
    `robustrun.methods.random.ExampleGenerator`, whose numbers belong to the examples and not to the batch.
    """
    empty = torch.empty_like(tensor)
    if _is_torch(generator):
        draw = empty.uniform_ if kind == "uniform" else empty.normal_
        return draw(generator=generator)
    return empty.copy_(getattr(generator, kind)(tuple(tensor.shape[1:])))


def _is_torch(generator: object) -> bool:
    return generator is None or isinstance(generator, torch.Generator)
