"""Small operators that the tests of equilibria share."""

import math

import torch

from robustrun.methods.equilibrium import CircularMonotone, DenseMonotone, Splitting

TIGHT = Splitting(rtol=1e-13, max_iterations=3000)


def seeded(seed=0):
    torch.manual_seed(seed)


def dense(n=6, margin=1.0, scale=1.0):
    operator = DenseMonotone(n, margin).double()
    with torch.no_grad():
        operator.A.mul_(scale)
        operator.B.mul_(scale)
    return operator


def circular(channels=3, side=6, margin=1.0, g=1.0, h=1.0):
    operator = CircularMonotone(channels, side, 3, margin).double()
    with torch.no_grad():
        operator.g.fill_(g)
        operator.h.fill_(h)
    return operator


def materialised(operator, shape):
    """The dense matrix of an operator on tensors of one example's shape."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return operator.apply((basis,))[0].reshape(n, n).T
