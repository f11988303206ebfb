"""The second hidden layer of a fully connected network, without its (batch, h2, h1) coefficients.

Row i of W2 meets the first layer's activation lines, a_L z + t_L <= f(z) <= a_U z + t_U, as
W2+ a_L + W2- a_U for a lower bound and W2+ a_U + W2- a_L for an upper bound, that is

    W2 s - |W2| d   and   W2 s + |W2| d,      s = (a_U + a_L) / 2,  d = (a_U - a_L) / 2.

On the input these are  P - N  and  P + N  with  P = (W1' s) W2',  N = (W1' d) |W2|',  both (batch, inputs, h2):
two matrix products of batch * inputs rows serve both bounds, and one serves the dual network, whose d is zero.
With fewer inputs than hidden units this is less arithmetic and far less memory than going row by row.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .activations import Lines
from .network import Network, Node
from .operators import Linear
from .regions import Bounds, Box, Region

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
    w1, b1, w2, b2 = first.weight(), first.bias(), node.op.weight(), node.op.bias()
    if rows is not None:
        w2, b2 = w2[rows], None if b2 is None else b2[rows]
    z1 = torch.nn.functional.linear(region.center, w1, b1)
    r = region.radius
    if lines.parallel:
        s = lines.upper_slope
        middle = torch.nn.functional.linear(s * z1, w2, b2)
        deviation = _parallel_deviation(s, w1, w2, r, region)
        # relu(-W2) and relu(W2), not of W2 s: the slopes are not negative
        down = lines.upper_intercept @ w2.clamp(max=0).T
        up = lines.upper_intercept @ w2.clamp(min=0).T
        return Bounds(middle - deviation + down, middle + deviation + up)
    s, d = (lines.upper_slope + lines.lower_slope) / 2, (lines.upper_slope - lines.lower_slope) / 2
    middle, half = torch.nn.functional.linear(s * z1, w2, b2), (d * z1) @ w2.abs().T
    low, high = _deviations(s, d, w1, w2, r, region)
    positive, negative = w2.clamp(min=0).T, w2.clamp(max=0).T
    down, up = lines.upper_intercept @ negative, lines.upper_intercept @ positive
    if lines.lower_intercept is not None:
        down, up = down + lines.lower_intercept @ positive, up + lines.lower_intercept @ negative
    return Bounds(middle - half - low + down, middle + half + high + up)


def _weighted(region: Region, p: Tensor, r: Tensor) -> Tensor:
    """The region's dual norm of p (batch, inputs, h2) along the inputs, each multiplied by r (batch, inputs) >= 0."""
    if isinstance(region, Box):
        return p.abs().mul(r.unsqueeze(-1)).sum(1)
    return region.reduce(p * r.unsqueeze(-1), 1)


def _blocks(s: Tensor, w1: Tensor, w2: Tensor):
    size = max(1, _BLOCK // (w1.shape[1] * max(w2.shape)))
    return (slice(i, i + size) for i in range(0, s.shape[0], size))


def _deviations(s: Tensor, d: Tensor, w1: Tensor, w2: Tensor, r: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    v, w2t, w2abs = w1.T.unsqueeze(0), w2.T, w2.abs().T
    low, high = [], []
    for i in _blocks(s, w1, w2):
        p, n = (s[i].unsqueeze(1) * v) @ w2t, (d[i].unsqueeze(1) * v) @ w2abs
        low.append(_weighted(region, p - n, r[i]))
        high.append(_weighted(region, p + n, r[i]))
    return torch.cat(low), torch.cat(high)


def _parallel_deviation(s: Tensor, w1: Tensor, w2: Tensor, r: Tensor, region: Region) -> Tensor:
    if isinstance(region, Box):
        return _BoxDeviation.apply(s, w1, w2, r)
    v = w1.T.unsqueeze(0)
    return torch.cat([_weighted(region, (s[i].unsqueeze(1) * v) @ w2.T, r[i]) for i in _blocks(s, w1, w2)])


class _BoxDeviation(torch.autograd.Function):
    """sum over inputs k of  r_k | sum_j w2_ij s_j w1_jk |  for every unit i, and its gradient, block by block.

    Autograd would keep every (batch, inputs, h) intermediate and walk through memory once an operation. Here a
    block of examples stays in cache from the first product to the last, and only the signs are kept.
    """

    @staticmethod
    def forward(ctx, s: Tensor, w1: Tensor, w2: Tensor, r: Tensor) -> Tensor:
        v, w2t = w1.T.unsqueeze(0), w2.T
        out, signs = [], []
        for i in _blocks(s, w1, w2):
            p = (s[i].unsqueeze(1) * v) @ w2t
            if any(ctx.needs_input_grad):
                signs.append(torch.sign(p).to(torch.int8))
            out.append(p.abs_().mul_(r[i].unsqueeze(-1)).sum(1))
        ctx.save_for_backward(s, w1, w2, r, *signs)
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        s, w1, w2, r, *signs = ctx.saved_tensors
        v = w1.T.unsqueeze(0)
        gv, gw2 = torch.zeros_like(v[0]), torch.zeros_like(w2)
        gs, gr = torch.empty_like(s), torch.empty_like(r)
        for i, sign in zip(_blocks(s, w1, w2), signs, strict=True):
            weighted = sign.to(s.dtype) * gradient[i].unsqueeze(1)  # dp / r
            t = s[i].unsqueeze(1) * v
            if ctx.needs_input_grad[3]:
                gr[i] = (weighted * (t @ w2.T)).sum(-1)
            gp = weighted.mul_(r[i].unsqueeze(-1)).flatten(0, 1)
            gw2.addmm_(gp.T, t.flatten(0, 1))
            gt = (gp @ w2).view_as(t)
            gs[i] = (gt * v).sum(1)
            gv += gt.mul_(s[i].unsqueeze(1)).sum(0)
        return gs, gv.T, gw2, gr if ctx.needs_input_grad[3] else None
