"""Input gradients without parameter gradients, and the modes a network is attacked in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]


def input_gradient(
    model: Network, points: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits at `points` (float32 or better) and the gradient of `loss(logits, targets).sum()` there.

    Summed, not averaged: only the direction counts, and small gradients must not underflow in half precision.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = full_precision(model(points))
        (gradient,) = torch.autograd.grad(loss(logits, targets).sum(), points)
    return logits.detach(), gradient


class Oracle:
    """A network as an attack sees it, with the number of examples passed forwards and backwards."""

    def __init__(self, model: Network):
        self.model, self.forwards, self.backwards = model, 0, 0

    def logits(self, points: Tensor) -> Tensor:
        """Without a gradient, in float32 or better."""
        self.forwards += len(points)
        with torch.no_grad():
            return full_precision(self.model(points))

    def gradient(
        self, points: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `input_gradient`."""
        self.forwards, self.backwards = self.forwards + len(points), self.backwards + len(points)
        return input_gradient(self.model, points, targets, loss)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits (autocast) of any shape as float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


@contextmanager
def frozen_parameters(model: Network) -> Iterator[None]:
    """No parameter wants a gradient inside: eager backward passes skip them, and so do compiled ones.

    Attack the bare module, not its DistributedDataParallel wrapper, whose hooks expect parameter gradients.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def evaluation_mode(model: Network) -> Iterator[None]:
    """`model.eval()` inside; afterwards every submodule is back in the mode it was in."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def batch_norm_mode(model: nn.Module, mode: Literal["train", "frozen", "eval"]) -> Iterator[None]:
    """How batch normalisation behaves inside, in a model that is in training mode.

    `train`: as ever; `frozen`: batch statistics, but running statistics are left alone; `eval`: running
    statistics, left alone too.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in ("train", "frozen", "eval"):
        raise ValueError(f"unknown batch normalisation mode '{mode}': it is train, frozen or eval")
    flag = {"frozen": "track_running_stats", "eval": "training"}.get(mode)
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)) if flag else ()
    changed = [m for m in norms if m.training and getattr(m, flag)]
    for module in changed:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module in changed:
            setattr(module, flag, True)
