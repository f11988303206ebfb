"""What a learned dynamical system is: a vector field, a map, or one of them behind an encoder and a decoder."""

from collections.abc import Callable

from torch import Tensor, nn


class VectorField(nn.Module):
    """x' = f(x) in continuous time: `forward` maps states (B, n) to their time derivatives (B, n)."""

    def field(self) -> Callable[[Tensor], Tensor]:
        """The same function, with what depends on the parameters alone computed once: for roll-outs."""
        return self


class StateMap(nn.Module):
    """Discrete time: `forward` maps states (B, n) to those one interval later (B, n)."""

    def step(self) -> Callable[[Tensor], Tensor]:
        """The same map, with what depends on the parameters alone computed once: for roll-outs."""
        return self


class FreeField(VectorField):
    """A vector field that nothing constrains; `centre` subtracts its value at the origin."""

    def __init__(self, network: nn.Module, *, centre: bool = False) -> None:
        super().__init__()
        self.network, self.centre = network, centre

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) - self.network(x.new_zeros(1, x.shape[1])) if self.centre else self.network(x)


class RestMap(StateMap):
    """Predicts that everything is at rest after one step: what a late-time error must be compared with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape)


class LatentVideo(nn.Module):
    """An auto-encoder of frames whose latent states follow learned dynamics, one unit of time a frame.

    `latent` is the dynamics, `advance` the map to the next frame's state that training used.
    """

    latent: VectorField | StateMap

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, C, H, W) in [0, 1] -> mean and log-variance of the latent state, (B, d) each."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latent states (B, d) -> frames (B, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def advance(self) -> Callable[[Tensor], Tensor]:
        """The map from a frame's latent states (B, d) to the next frame's."""
        raise NotImplementedError
