"""The second hidden layer of a fully connected network, without its (batch, h2, h1) coefficients.

The first layer's activations lie between lines, so on z1 = W1 x + b1 the layer W2 f(z1) + b2 lies within

    W2 (s z1 + m) + b2  -+  |W2| (d z1 + e),

s, d being half the sum and half the difference of the upper and the lower line's slopes, m and e of their intercepts.
What moves in it is linear in the input, with coefficients  P -+ N,

    P_bki = sum_j s_bj W1_jk W2_ij        N_bki = sum_j d_bj W1_jk |W2_ij|        (batch, inputs, h2),

so two products serve both bounds, and one serves the dual network, whose lines are parallel (d is zero). Either s or
W2, whichever has fewer rows, is multiplied by W1 entry by entry; the other enters by one matrix product.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustrun.methods.bounds.activations import Lines
from robustrun.methods.bounds.network import Network, Node
from robustrun.methods.bounds.operators import Linear
from robustrun.methods.bounds.regions import Bounds, Box, Region

# numbers in one block of (examples, inputs, units): small enough to stay in a core's cache
_BLOCK = 2**17


def applies(net: Network, node: Node) -> bool:
    """Is `node` the second linear layer right above a first one and an activation?"""
    if not (isinstance(node.op, Linear) and len(net.input.shape) == 1 and len(node.shape) == 1):
        return False
    hidden = net[node.inputs[0]]
    if not hidden.is_activation:
        return False
    first = net[hidden.inputs[0]]
    return isinstance(first.op, Linear) and first.inputs == (net.input.name,)


def bounds(net: Network, node: Node, lines: Lines, region: Region, rows: Tensor | None = None) -> Bounds:
    """Bounds (batch, rows) of the pre-activation `node`, `lines` being those of the layer below it."""
    first = net[net[node.inputs[0]].inputs[0]].op
    v, w2, b2 = first.weight().T.contiguous(), node.op.weight(), node.op.bias()
    if rows is not None:
        w2, b2 = w2[rows], None if b2 is None else b2[rows]
    z1, r = first.forward(region.centre), region.radius
    if lines.parallel:
        s, m = lines.upper_slope, lines.upper_intercept / 2
        middle = torch.nn.functional.linear(s * z1 + m, w2, b2)
        spread = _deviation(s, v, w2, r, region) + m @ w2.abs().T
        return Bounds(middle - spread, middle + spread)
    s, d = (lines.upper_slope + lines.lower_slope) / 2, (lines.upper_slope - lines.lower_slope) / 2
    m = e = lines.upper_intercept / 2
    if lines.lower_intercept is not None:
        m, e = m + lines.lower_intercept / 2, e - lines.lower_intercept / 2
    middle, spread = torch.nn.functional.linear(s * z1 + m, w2, b2), (d * z1 + e) @ w2.abs().T
    low, high = _deviations(s, d, v, w2, r, region)
    return Bounds(middle - spread - low, middle + spread + high)


def _coefficients(a: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """sum over j of  a_nj v_kj c_mj:  (rows of a, inputs, rows of c)."""
    return (a.unsqueeze(1) * v) @ c.T


def _blocks(a: Tensor, v: Tensor, c: Tensor) -> list[slice]:
    """Of the rows of `a`."""
    size = max(1, _BLOCK // (len(v) * max(c.shape)))
    return [slice(i, i + size) for i in range(0, len(a), size)]


def _deviations(s: Tensor, d: Tensor, v: Tensor, w2: Tensor, r: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """The region's dual norms (batch, h2) of P - N and of P + N along the inputs, each multiplied by r."""
    if len(s) > len(w2):
        low, high = _norms((w2, s), (w2.abs(), d), v, r.T.expand(len(w2), -1, -1), region)
        return low.T, high.T
    return _norms((s, w2), (d, w2.abs()), v, r.unsqueeze(2), region)


def _norms(
    p: tuple[Tensor, Tensor], n: tuple[Tensor, Tensor], v: Tensor, r: Tensor, region: Region
) -> tuple[Tensor, Tensor]:
    low, high = [], []
    for i in _blocks(p[0], v, p[1]):
        both = [_coefficients(a[i], v, c) for a, c in (p, n)]
        low.append(region.reduce((both[0] - both[1]).mul_(r[i]), 1))
        high.append(region.reduce((both[0] + both[1]).mul_(r[i]), 1))
    return torch.cat(low), torch.cat(high)


def _deviation(s: Tensor, v: Tensor, w2: Tensor, r: Tensor, region: Region) -> Tensor:
    """The region's dual norm (batch, h2) of P along the inputs, each multiplied by r."""
    if len(s) > len(w2):
        return _norm(w2, v, s, r.T.expand(len(w2), -1, -1), region).T
    return _norm(s, v, w2, r.unsqueeze(2), region)


def _norm(a: Tensor, v: Tensor, c: Tensor, r: Tensor, region: Region) -> Tensor:
    if isinstance(region, Box):
        return _BoxNorm.apply(a, v, c, r)
    return torch.cat([region.reduce(_coefficients(a[i], v, c) * r[i], 1) for i in _blocks(a, v, c)])


class _BoxNorm(torch.autograd.Function):
    """sum over inputs k of  r_nkm | sum_j a_nj v_kj c_mj |  (rows of a, rows of c), and its gradient, in blocks.

    Autograd would keep every (rows, inputs, units) intermediate and walk through memory once an operation. Here a
    block of rows stays in cache from the first product to the last, and only the signs are kept.
    """

    @staticmethod
    def forward(ctx, a: Tensor, v: Tensor, c: Tensor, r: Tensor) -> Tensor:
        out, signs = [], []
        for i in _blocks(a, v, c):
            p = _coefficients(a[i], v, c)
            if any(ctx.needs_input_grad):
                signs.append(p.sign().to(torch.int8))
            out.append(p.abs_().mul_(r[i]).sum(1))
        ctx.save_for_backward(a, v, c, r, *signs)
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        a, v, c, r, *signs = ctx.saved_tensors
        ga, gv, gc = torch.empty_like(a), torch.zeros_like(v), torch.zeros_like(c)
        gr = torch.empty_like(r) if ctx.needs_input_grad[3] else None
        for i, sign in zip(_blocks(a, v, c), signs, strict=True):
            gp = sign * gradient[i].unsqueeze(1)
            if gr is not None:
                gr[i] = (gp * _coefficients(a[i], v, c)).sum_to_size(r[i].shape)
            gp = gp.mul_(r[i]).flatten(0, 1)
            gt = (gp @ c).view(-1, *v.shape)  # of a_nj v_kj
            gc.addmm_(gp.T, (a[i].unsqueeze(1) * v).flatten(0, 1))
            ga[i] = (gt * v).sum(1)
            gv += gt.mul_(a[i].unsqueeze(1)).sum(0)
        return ga, gv, gc, gr
