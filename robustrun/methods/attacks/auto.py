"""AutoAttack: the standard ensemble of four attacks without parameters to tune (arXiv 2003.01690)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustrun.methods.attacks.apgd import apgd, apgd_targeted
from robustrun.methods.attacks.balls import Box, Norm, Radius, pick
from robustrun.methods.attacks.fab import fab_targeted
from robustrun.methods.attacks.gradients import Network, Oracle, evaluation_mode
from robustrun.methods.attacks.square import square

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
STANDARD: tuple[AttackName, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
CLEAN, ROBUST = -1, -2


@dataclass(frozen=True)
class AutoAttackResult:
    """What the ensemble found for B examples.

    Attributes:
        delta: perturbations (B, ...), 0 where nothing was found or needed.
        success: (B,) bool: `inputs + delta` is misclassified.
        broken_by: (B,) the number of the attack that broke the example; `CLEAN` (-1): it was misclassified
            unperturbed; `ROBUST` (-2): nothing broke it.
        robust_accuracy: after each attack, by name; "clean" comes first.
        forwards, backwards: examples passed through the network.
    """

    delta: Tensor
    success: Tensor
    broken_by: Tensor
    robust_accuracy: dict[str, float]
    forwards: int
    backwards: int


def autoattack(
    model: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    attacks: Sequence[AttackName] = STANDARD,
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    batch_size: int = 1000,
    box: Box = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> AutoAttackResult:
    """Each attack in turn on the examples that are still standing (arXiv 2003.01690, section 5).

    Give it as many examples as the memory holds: survivors of all of them share batches.

    Args:
        model: maps inputs in natural units (B, ...) to logits (B, classes).
        inputs: (B, ...), inside the box; images if the square attack is among the attacks.
        labels: (B,).
        norm, epsilon, box: the threat, see `Ball`; epsilon a number or one an example (B,).
        attacks: which, in order. With fewer than four classes, where the targeted DLR loss is not defined,
            `apgd-dlr` takes the place of `apgd-t`.
        steps: of APGD and FAB, for each restart or target.
        queries: of the square attack.
        targets: classes that the targeted attacks aim at.
        batch_size: largest number of examples in one pass.
        generator: of all draws.

    Raises:
        ValueError: an attack's name is unknown.
    """
    if unknown := set(attacks) - {"apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"}:
        raise ValueError(f"unknown attacks {sorted(unknown)}: apgd-ce, apgd-dlr, apgd-t, fab-t and square are")
    oracle = Oracle(model)
    with evaluation_mode(model):
        logits = torch.cat([oracle.logits(part) for part in inputs.split(batch_size)])
    if logits.shape[1] < 4:
        attacks = ["apgd-dlr" if name == "apgd-t" else name for name in attacks]
    run = {
        "apgd-ce": partial(apgd, steps=steps, generator=generator),
        "apgd-dlr": partial(apgd, steps=steps, loss="dlr", generator=generator),
        "apgd-t": partial(apgd_targeted, steps=steps, targets=targets, generator=generator),
        "fab-t": partial(fab_targeted, steps=steps, targets=targets),
        "square": partial(square, queries=queries, generator=generator),
    }
    delta, broken_by = torch.zeros_like(inputs), torch.full_like(labels, ROBUST)
    broken_by[logits.argmax(1) != labels] = CLEAN
    accuracy = {"clean": _share(broken_by == ROBUST)}
    for number, name in enumerate(attacks):
        for part in (broken_by == ROBUST).nonzero()[:, 0].split(batch_size):
            if not len(part):  # of nothing, split makes one empty part, which not every model takes
                break
            found = run[name](model, inputs[part], labels[part], norm=norm, epsilon=pick(epsilon, part), box=box)
            broken = part[found.success]
            delta[broken], broken_by[broken] = found.delta[found.success], number
            oracle.forwards += found.forwards
            oracle.backwards += found.backwards
        accuracy[name] = _share(broken_by == ROBUST)
    return AutoAttackResult(delta, broken_by != ROBUST, broken_by, accuracy, oracle.forwards, oracle.backwards)


def _share(standing: Tensor) -> float:
    return standing.double().mean().item()
