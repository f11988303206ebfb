"""Adversarial attacks in natural input units: each is a lower bound on what an adversary can do.

Attacks never touch parameters or their gradients, and leave the model in the mode they found it in.
"""

from robustrun.methods.attacks.balls import Ball, Box, Norm, Start, norms, random_like, steepest
from robustrun.methods.attacks.gradients import (
    batch_norm_mode,
    evaluation_mode,
    frozen_parameters,
    input_gradient,
)
from robustrun.methods.attacks.losses import LossName, cross_entropy, dlr, dlr_targeted, get_loss, margin
from robustrun.methods.attacks.pgd import AttackResult, fgsm, pgd
from robustrun.methods.attacks.training import InitBox, perturb

__all__ = [
    "AttackResult",
    "Ball",
    "Box",
    "InitBox",
    "LossName",
    "Norm",
    "Start",
    "batch_norm_mode",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "evaluation_mode",
    "fgsm",
    "frozen_parameters",
    "get_loss",
    "input_gradient",
    "margin",
    "norms",
    "perturb",
    "pgd",
    "random_like",
    "steepest",
]
