"""The one layer of a multiscale deep equilibrium model (arXiv 2006.08656, section 3 and appendix A)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.equilibrium import Equation

Tensors = tuple[Tensor, ...]


class NormedConv(nn.Module):
    """The weight of a convolution as v g / |v|, the norm over all but the output channel (arXiv 1602.07868).

    v begins as any convolution of torch does, and g as its norm.
    """

    def __init__(self, channels: int, out_channels: int, size: int):
        super().__init__()
        self.v = nn.Conv2d(channels, out_channels, size, bias=False).weight
        self.g = nn.Parameter(self._norm().detach())

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.v, dim=(1, 2, 3), keepdim=True)

    def weight(self) -> Tensor:
        """(out_channels, channels, size, size); computed once a forward pass of the network, not once an iteration."""
        return self.v * (self.g / self._norm())


class Branch(nn.Module):
    """The residual block on one resolution."""

    def __init__(self, channels: int, expansion: int, groups: int):
        super().__init__()
        wide = expansion * channels
        self.conv1, self.conv2 = NormedConv(channels, wide, 3), NormedConv(wide, channels, 3)
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(groups, c) for c in (wide, channels, channels))

    def weights(self) -> Tensors:
        """All tensors that `forward` depends on, in a fixed order."""
        norms = [p for norm in (self.norm1, self.norm2, self.norm3) for p in (norm.weight, norm.bias)]
        return self.conv1.weight(), self.conv2.weight(), *norms


class Path(nn.Module):
    """From the branch of one resolution to another: upwards a 1x1 convolution, downwards strided ones."""

    def __init__(self, source: int, target: int, channels: Sequence[int], groups: int):
        super().__init__()
        self.rise = source - target
        if self.rise > 0:
            convs = [nn.Conv2d(channels[source], channels[target], 1, bias=False)]
        else:
            outs = [channels[source]] * (-self.rise - 1) + [channels[target]]
            convs = [nn.Conv2d(channels[source], out, 3, stride=2, padding=1, bias=False) for out in outs]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, conv.out_channels) for conv in convs)

    def weights(self) -> Tensors:
        pairs = zip(self.convs, self.norms, strict=True)
        return tuple(w for conv, norm in pairs for w in (conv.weight, norm.weight, norm.bias))


class Output(nn.Module):
    """What follows the sum over all paths: a 1x1 convolution and a normalisation with half the groups."""

    def __init__(self, channels: int, groups: int, affine: bool):
        super().__init__()
        self.conv = NormedConv(channels, channels, 1)
        self.norm = nn.GroupNorm(groups // 2, channels, affine=affine)

    def weights(self) -> Tensors:
        return self.conv.weight(), *self.norm.parameters()


class MultiscaleCell(nn.Module):
    """z -> f(z; u): a residual block on each resolution, then every branch adds up what all branches send it.

    The state of an example is one vector, the branches one after another, the highest resolution first; each has half
    the resolution of the one before. The injection u enters the first alone.

    Args:
        channels: of each branch.
        expansion: by which the blocks are wider inside.
        groups: of the normalisations.
        affine: the last normalisation of each branch has a scale and a shift.
        dropout: probability with which a channel is dropped, the same ones in all iterations of a pass
            (variational dropout); in training mode alone.
        softplus: beta of the softplus log(1 + exp(beta z)) / beta that takes the place of the last ReLU of every block
            and of the fusion, and makes f smooth, which the paper recommends for stability; None: ReLU.

    Raises:
        ValueError: the channels cannot be divided into the groups.
    """

    def __init__(
        self,
        channels: Sequence[int],
        expansion: int,
        groups: int,
        affine: bool,
        dropout: float,
        softplus: float | None = None,
    ):
        super().__init__()
        if groups % 2 or any(c % groups for c in channels):
            raise ValueError(f"channels {tuple(channels)} cannot be divided into {groups} groups (an even number)")
        n = len(channels)
        self.channels, self.groups, self.affine = tuple(channels), groups, affine
        self.dropout, self.softplus = dropout, softplus
        self.branches = nn.ModuleList(Branch(c, expansion, groups) for c in channels)
        # In the order in which they are applied: targets in turn, from all sources but themselves.
        self.paths = nn.ModuleList(Path(j, i, channels, groups) for i in range(n) for j in range(n) if i != j)
        self.outputs = nn.ModuleList(Output(c, groups, affine) for c in channels) if n > 1 else nn.ModuleList()

    def sizes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """(channels, height, width) of the branches, the first one's size being given."""
        return [(c, height >> i, width >> i) for i, c in enumerate(self.channels)]

    def split(self, z: Tensor, height: int, width: int) -> list[Tensor]:
        """The branches (B, C_i, H / 2^i, W / 2^i) of states (B, D)."""
        sizes = self.sizes(height, width)
        parts = z.split([c * h * w for c, h, w in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]

    def equation(self, injection: Tensor) -> tuple[Equation, Tensor]:
        """z = f(z; u) for u (B, C_0, H, W), with this pass's weights and masks; and the zero state (B, D)."""
        weights = tuple(w for part in (*self.branches, *self.paths, *self.outputs) for w in part.weights())
        masks: Tensors = ()
        if self.training and self.dropout > 0:
            keep = 1 - self.dropout
            masks = tuple(
                injection.new_empty((len(injection), c, 1, 1)).bernoulli_(keep).div_(keep) for c in self.channels
            )
        size = sum(c * h * w for c, h, w in self.sizes(*injection.shape[2:]))
        # Half precision is for f alone: the state is what residuals are measured by.
        precise = torch.promote_types(injection.dtype, torch.float32)
        start = injection.new_zeros((len(injection), size), dtype=precise)
        return Equation(self.apply_to, (injection, *masks), weights), start

    def apply_to(self, z: Tensor, inputs: Tensors, weights: Tensors) -> Tensor:
        """f. The weights come in the order in which `equation` lists them."""
        injection, *masks = inputs
        following = iter(weights).__next__
        branches = [
            self._block(branch, injection if i == 0 else None, masks[i] if masks else None, following)
            for i, branch in enumerate(self.split(z, *injection.shape[2:]))
        ]
        if self.outputs:
            branches = self._fuse(branches, following)
        return torch.cat([branch.flatten(1) for branch in branches], dim=1).to(z.dtype)

    def _block(self, z: Tensor, injection: Tensor | None, mask: Tensor | None, following) -> Tensor:
        w1, w2 = following(), following()
        a = F.relu(self._norm(F.conv2d(z, w1, padding=1), following), inplace=True)
        b = F.conv2d(a, w2, padding=1)
        if mask is not None:
            b = b.mul_(mask)
        if injection is not None:
            b = b.add_(injection)
        b = self._norm(b, following).add_(z)
        return self._norm(self._activate(b), following)

    def _fuse(self, branches: list[Tensor], following) -> list[Tensor]:
        summed = []
        paths = iter(self.paths)
        for i, own in enumerate(branches):
            total = own
            for j, other in enumerate(branches):
                if i != j:
                    total = total + self._send(next(paths), other, following)
            summed.append(self._activate(total))
        outputs = []
        for total in summed:
            z = F.conv2d(total, following())
            scale = (following(), following()) if self.affine else (None, None)
            outputs.append(F.group_norm(z, self.groups // 2, *scale))
        return outputs

    def _activate(self, z: Tensor) -> Tensor:
        """The last nonlinearity of a block or of the fusion; z may be overwritten."""
        return F.relu(z, inplace=True) if self.softplus is None else F.softplus(z, self.softplus)

    def _send(self, path: Path, z: Tensor, following) -> Tensor:
        if path.rise > 0:
            z = self._norm(F.conv2d(z, following()), following)
            return F.interpolate(z, scale_factor=2**path.rise, mode="nearest")
        for number in range(-path.rise):
            if number:
                z = F.relu(z, inplace=True)
            z = self._norm(F.conv2d(z, following(), stride=2, padding=1), following)
        return z

    def _norm(self, z: Tensor, following) -> Tensor:
        return F.group_norm(z, self.groups, following(), following())
