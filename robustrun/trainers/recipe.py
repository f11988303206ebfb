"""The parts of a training recipe that every gradient trainer shares: optimiser and learning-rate schedule."""

import itertools
import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from robustrun.errors import ConfigError
from robustrun.numbers import NonNegative, Number, Positive, Probability


class Optimizer(BaseModel):
    """SGD, Adam or AdamW, with the choice of what is decayed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.1  # peak learning rate; the schedule multiplies it
    momentum: Probability = 0.9  # of SGD
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay: Literal["all", "weights", "not_norm"] = "all"  # "weights" spares biases and normalisation

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over a model's parameters, in the fused implementation where there is one.

        Raises:
            ConfigError: the model has nothing to train.
        """
        groups = self._groups(model)
        if not any(group["params"] for group in groups):
            raise ConfigError(f"the model ({type(model).__name__}) has no parameters to train: use trainer=none")
        device = next(model.parameters()).device.type
        fused = device in ("cpu", "cuda")
        match self.name:
            case "sgd":
                momentum = {"momentum": self.momentum, "nesterov": self.nesterov}
                return torch.optim.SGD(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused, **momentum)
            case "adam":
                return torch.optim.Adam(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
            case "adamw":
                return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    def _groups(self, model: nn.Module) -> list[dict]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.decay == "all" or self.weight_decay == 0:
            return [{"params": parameters}]
        if self.decay == "weights":  # one-dimensional parameters are biases, scales and shifts
            spared = {id(p) for p in parameters if p.ndim <= 1}
        else:
            norms = (m for m in model.modules() if isinstance(m, _NORMS))
            spared = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
        return [
            {"params": [p for p in parameters if id(p) not in spared]},
            {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
        ]


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Schedule(BaseModel):
    """Learning rate over training, as a factor of the peak; evaluated anew at every step.

    `cyclic` is a triangle with its top at the fraction `peak`; `piecewise` multiplies by `decay` at each of the
    fractions `milestones`; `stairs` goes down in ten equal steps; `linear`, `cosine`: see robust_overfitting
    (arXiv 2002.11569, section 3); `poly` is (1 - t)^0.9; `knots` interpolates linearly between (epoch, factor) pairs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["flat", "cyclic", "piecewise", "stairs", "linear", "cosine", "poly", "knots"] = "flat"
    peak: Probability = 0.5
    milestones: tuple[Probability, ...] = (0.5, 0.75)
    decay: Positive = 0.1
    knots: tuple[tuple[NonNegative, NonNegative], ...] = ()
    at: Literal["start", "end"] = "start"  # a step's time: where it begins (fast_at, CIFAR) or where it ends
    momentum_dip: Number = 0.0  # momentum (Adam: its first beta) falls by so much at the peak, from the optimiser's

    def factor(self, time: float, epochs: float) -> float:
        """The factor at `time` epochs of `epochs`."""
        s = time / epochs
        match self.name:
            case "flat":
                return 1.0
            case "cyclic":
                return _interpolate(s, ((0.0, 0.0), (self.peak, 1.0), (1.0, 0.0)))
            case "piecewise":
                return self.decay ** sum(s >= milestone for milestone in self.milestones)
            case "stairs":
                return 1.0 - math.floor(10 * s + 1e-9) / 10
            case "linear":
                # In whole epochs, as in the paper's code; too few epochs have none to spare.
                first, second = (k * epochs // 3 if epochs >= 3 else k * epochs / 3 for k in (1, 2))
                return _interpolate(time, ((0.0, 1.0), (first, 1.0), (second, 0.1), (epochs, 0.01)))
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * s))
            case "poly":
                return max(0.0, 1.0 - s) ** 0.9
            case "knots":
                return _interpolate(time, self.knots)

    def apply(self, optimizer: torch.optim.Optimizer, recipe: Optimizer, time: float, epochs: float) -> float:
        """Set an optimiser's learning rate (and momentum) for the step at `time`; the learning rate."""
        factor = self.factor(time, epochs)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor
            momentum = recipe.momentum - self.momentum_dip * factor
            if self.momentum_dip and "momentum" in group:
                group["momentum"] = momentum
            elif self.momentum_dip:  # Adam's is its first beta
                group["betas"] = (momentum, group["betas"][1])
        return recipe.lr * factor


def _interpolate(x: float, knots: tuple[tuple[float, float], ...]) -> float:
    for (x0, y0), (x1, y1) in itertools.pairwise(knots):
        if x <= x1:
            return y0 + (y1 - y0) * max(0.0, x - x0) / (x1 - x0) if x1 > x0 else y1
    return knots[-1][1]
