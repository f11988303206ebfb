"""AutoAttack: an upper bound on robust accuracy by the standard ensemble of four attacks, nothing to tune."""

from typing import Literal

import numpy as np
from torch import Tensor, nn

from robustrun.certifiers.attack import Attack, shared
from robustrun.certifiers.examplewise import fraction
from robustrun.methods.attacks import STANDARD, AttackName, autoattack
from robustrun.numbers import NonNegative, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch
from robustrun.runtime import Run

CLEAN = -1  # what `broken_by` holds for an example that needs no attack


@certifiers.register("autoattack")
class AutoAttack(Attack):
    """Each attack in turn on the examples that still stand (arXiv 2003.01690).

    Args:
        norm, epsilon: the threat model.
        attacks: which, in order.
        steps: of APGD and FAB, for each target.
        queries: of the square attack.
        targets: classes that the targeted attacks aim at.
        pass_size: examples in one pass through the network. The survivors of a whole batch share passes: a
            large `batch_size` keeps passes full, a small one loses less work to an interruption.
        common: see `Attack`.
    """

    description = "AutoAttack"

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 8 / 255,
        attacks: tuple[AttackName, ...] = STANDARD,
        steps: PositiveInt = 100,
        queries: PositiveInt = 5000,
        targets: PositiveInt = 9,
        pass_size: PositiveInt = 1000,
        **common,
    ):
        super().__init__(**common)
        self.attacks = attacks
        self.options = {
            "norm": norm, "epsilon": epsilon, "attacks": attacks, "steps": steps, "queries": queries,
            "targets": targets, "batch_size": pass_size,
        }  # fmt: skip

    def judge(self, model: nn.Module, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Which attack, by its place in `attacks`, broke an example first; -1 unperturbed, -2 none."""
        generator = run.generator("certify", int(batch.indices[0]), device=run.device)
        result = autoattack(model, batch.inputs, batch.targets, generator=generator, **self.options)
        return {
            "label": batch.targets,
            "correct": result.broken_by != CLEAN,
            "robust": ~result.success,
            "broken_by": result.broken_by,
            "forwards": shared(result.forwards, batch.targets),
            "backwards": shared(result.backwards, batch.targets),
        }

    def summary(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        broken_by = columns["broken_by"]
        after = {
            f"{name.replace('-', '_')}_accuracy": 1 - np.mean((broken_by >= CLEAN) & (broken_by <= number))
            for number, name in enumerate(self.attacks)
        }
        return fraction(columns["correct"], "clean_accuracy") | after | fraction(columns["robust"], "robust_accuracy")
