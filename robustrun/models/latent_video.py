"""Auto-encoders of frames whose latent states follow learned dynamics."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.dynamics import LatentVideo, integrator
from robustrun.models.lyapunov_parts import FieldConfig
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import VideoSpec


class _Paper(nn.Module):
    """Five strided convolutions and their mirror image: 15,800,099 parameters at 3 x 240 x 320, latent 320."""

    CHANNELS = (8, 16, 32, 64, 128)
    KERNELS = ((9, 2), (9, 2), (5, 2), (5, 2), (3, 1))

    def __init__(self, shape: tuple[int, int, int], latent: int, relu_before_sigmoid: bool):
        super().__init__()
        channels, *size = shape
        plan = list(zip((channels, *self.CHANNELS), self.CHANNELS, self.KERNELS, strict=False))
        sizes, encoder = [tuple(size)], []
        for inputs, outputs, (kernel, stride) in plan:
            encoder += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU()]
            sizes.append(tuple((edge - kernel) // stride + 1 for edge in sizes[-1]))
        if min(sizes[-1]) < 1:
            raise ConfigError(f"frames of {size[0]} x {size[1]} are too small for this encoder: architecture=small")
        features = self.CHANNELS[-1] * sizes[-1][0] * sizes[-1][1]
        self.encoder = nn.Sequential(*encoder, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(features, latent), nn.Linear(features, latent)

        decoder: list[nn.Module] = []
        for (outputs, inputs, (kernel, stride)), small, large in zip(
            plan[::-1], sizes[:0:-1], sizes[-2::-1], strict=True
        ):
            # The part of the larger picture that the strided convolution did not see is added back.
            missing = tuple(big - ((edge - 1) * stride + kernel) for big, edge in zip(large, small, strict=True))
            decoder += [nn.ConvTranspose2d(inputs, outputs, kernel, stride, output_padding=missing), nn.ReLU()]
        decoder = decoder if relu_before_sigmoid else decoder[:-1]
        self.expand = nn.Linear(latent, features)
        unflatten = nn.Unflatten(1, (self.CHANNELS[-1], *sizes[-1]))
        self.decoder = nn.Sequential(unflatten, *decoder, nn.Sigmoid())

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(frames)
        return self.mean(features), self.log_variance(features)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.expand(z))


class _Small(nn.Module):
    """Two strided convolutions and their mirror image, for pictures whose sides divide by four."""

    def __init__(self, shape: tuple[int, int, int], latent: int):
        super().__init__()
        channels, height, width = shape
        if height % 4 or width % 4:
            raise ConfigError(f"architecture=small needs sides that divide by 4, not {height} x {width}")
        features = 32 * (height // 4) * (width // 4)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten()
        )
        self.moments = nn.Linear(features, 2 * latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, features),
            nn.ReLU(),
            nn.Unflatten(1, (32, height // 4, width // 4)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, channels, 4, 2, 1),
            nn.Sigmoid(),
        )

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.moments(self.encoder(frames)).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


@models.register("latent_video")
class ConvolutionalVideo(LatentVideo):
    """A convolutional variational auto-encoder with latent dynamics (arXiv 2001.06116).

    Args:
        architecture: "paper" (five convolutions, for 240 x 320) or "small" (two, for 32 x 32).
        latent: dimensions of the latent state.
        step, substeps: how a frame's latent state becomes the next one's: explicit steps through one unit of time.
            A single Euler step is the published code's; it voids the guarantee of the continuous-time field.
        relu_before_sigmoid: as in the published code, where no pixel can be darker than a half.
        dynamics: the latent vector field.
    """

    def __init__(
        self,
        spec: VideoSpec,
        *,
        architecture: Literal["paper", "small"] = "paper",
        latent: PositiveInt = 320,
        step: Literal["euler", "rk4"] = "rk4",
        substeps: PositiveInt = 2,
        relu_before_sigmoid: bool = False,
        dynamics: FieldConfig = FieldConfig(),  # noqa: B008
    ):
        super().__init__()
        if architecture == "paper":
            self.coder: nn.Module = _Paper(spec.input_shape, latent, relu_before_sigmoid)
        else:
            self.coder = _Small(spec.input_shape, latent)
        self.latent = dynamics.build(latent)
        self.method, self.substeps = step, substeps

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.coder.encode(frames)

    def decode(self, z: Tensor) -> Tensor:
        return self.coder.decode(z)

    def advance(self) -> Callable[[Tensor], Tensor]:
        # In single precision: the squared gradient of V would underflow in half precision.
        step = integrator(self.latent.field(), 1.0, self.method, self.substeps)

        def in_full_precision(z: Tensor) -> Tensor:
            with torch.autocast(z.device.type, enabled=False):
                return step(z if z.dtype == torch.float64 else z.float())

        return in_full_precision

    def forward(self, frames: Tensor) -> Tensor:
        """The prediction of the next frames from the means of the latent states."""
        return self.decode(self.advance()(self.encode(frames)[0]))
