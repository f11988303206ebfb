"""Properties in VNN-LIB, the language of the neural-network verification competition."""

from torch import Tensor


def vnnlib(lower: Tensor, upper: Tensor, at_least: float, at_most: float, comment: str = "") -> str:
    """The property "some input in the box gives an output outside [at_least, at_most]", for one output.

    lower, upper: (inputs,). A verifier that answers `unsat` has proved that the output stays inside; one that
    answers `sat` gives an input for which it does not. Numbers are written so that they read back exactly.
    """
    n = lower.numel()
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{j} Real)" for j in range(n)] + ["(declare-const Y_0 Real)"]
    for j, (low, high) in enumerate(zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True)):
        lines += [f"(assert (>= X_{j} {_decimal(low)}))", f"(assert (<= X_{j} {_decimal(high)}))"]
    lines.append(f"(assert (or (and (<= Y_0 {_decimal(at_least)})) (and (>= Y_0 {_decimal(at_most)}))))")
    return "\n".join(lines) + "\n"


def _decimal(value: float) -> str:
    """Positional, because not every reader of VNN-LIB knows exponents."""
    text = repr(float(value))
    return f"{float(value):.25f}" if "e" in text else text
