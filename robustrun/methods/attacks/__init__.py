"""Adversarial attacks in natural input units: each is a lower bound on what an adversary can do.

Attacks never touch parameters or their gradients, and leave the model in the mode they found it in.
"""

from robustrun.methods.attacks.alignment import gradient_alignment
from robustrun.methods.attacks.apgd import apgd, apgd_targeted
from robustrun.methods.attacks.auto import STANDARD, AttackName, AutoAttackResult, autoattack
from robustrun.methods.attacks.balls import Ball, Box, Norm, Start, norms, random_like, steepest
from robustrun.methods.attacks.fab import fab_targeted
from robustrun.methods.attacks.gradients import (
    batch_norm_mode,
    evaluation_mode,
    frozen_parameters,
    input_gradient,
)
from robustrun.methods.attacks.losses import LossName, cross_entropy, dlr, dlr_targeted, get_loss, kl_divergence, margin
from robustrun.methods.attacks.pgd import AttackResult, fgsm, pgd
from robustrun.methods.attacks.square import square
from robustrun.methods.attacks.training import InitBox, perturb
from robustrun.methods.attacks.weights import WeightPerturbation, weight_perturbation

__all__ = [
    "STANDARD",
    "AttackName",
    "AttackResult",
    "AutoAttackResult",
    "Ball",
    "Box",
    "InitBox",
    "LossName",
    "Norm",
    "Start",
    "WeightPerturbation",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "batch_norm_mode",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "evaluation_mode",
    "fab_targeted",
    "fgsm",
    "frozen_parameters",
    "get_loss",
    "gradient_alignment",
    "input_gradient",
    "kl_divergence",
    "margin",
    "norms",
    "perturb",
    "pgd",
    "random_like",
    "square",
    "steepest",
    "weight_perturbation",
]
