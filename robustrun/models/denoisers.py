"""Image denoisers: what stands before a classifier that is to be smoothed (arXiv 2003.01908)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from robustrun.data import import_torchvision
from robustrun.numbers import Number, PositiveInt


class DnCNN(nn.Module):
    """x - net(x): `depth` 3x3 convolutions, batch normalisation in all but the first and the last.

    The last convolution starts at zero, so that a fresh denoiser is the identity; the others start orthogonal.
    558,400 parameters for 3 channels at depth 17 and width 64. Source: Zhang et al. (2017).

    Args:
        channels: of the images.
        depth, width: convolutions, and their channels.
        momentum: of the running statistics, (1 - m) old + m batch; arXiv 2003.01908 used 0.95, nearly the statistics
            of the last batch alone.
    """

    def __init__(self, channels: int, *, depth: int = 17, width: int = 64, momentum: float = 0.1):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=1e-4, momentum=momentum),
                nn.ReLU(),
            ]
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layers[0].bias)
        nn.init.zeros_(layers[-1].weight)

    def forward(self, images: Tensor) -> Tensor:
        return images - self.layers(images)


class _Unit(nn.Sequential):
    """Batch normalisation, ReLU, convolution."""

    def __init__(self, channels: int, out_channels: int, kernel: int):
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False),
        )


class MemoryBlock(nn.Module):
    """Residual blocks one after another, whose outputs a 1x1 gate joins with the memory of all blocks before."""

    def __init__(self, width: int, residuals: int, memories: int):
        super().__init__()
        self.residuals = nn.ModuleList(
            nn.Sequential(_Unit(width, width, 3), _Unit(width, width, 3)) for _ in range(residuals)
        )
        self.gate = _Unit((residuals + memories) * width, width, 1)

    def forward(self, memory: list[Tensor]) -> Tensor:
        u, collected = memory[-1], []
        for residual in self.residuals:
            u = u + residual(u)
            collected.append(u)
        return self.gate(torch.cat([*collected, *memory], 1))


class MemNet(nn.Module):
    """x + net(x): `blocks` memory blocks of `residuals` residual blocks each; 1,436,678 parameters for 3 channels.

    Source: Tai et al. (2017), at the size of arXiv 2003.01908.
    """

    def __init__(self, channels: int, *, width: int = 64, blocks: int = 3, residuals: int = 6):
        super().__init__()
        self.extract = _Unit(channels, width, 3)
        self.blocks = nn.ModuleList(MemoryBlock(width, residuals, memories) for memories in range(1, blocks + 1))
        self.reconstruct = _Unit(width, channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        memory = [self.extract(images)]
        for block in self.blocks:
            memory.append(block(memory))
        return images + self.reconstruct(memory[-1])


class DiffusionDenoiser(nn.Module):
    """One reverse step of a pretrained diffusion model, for all sigmas (Carlini et al., "(Certified!!) adversarial
    robustness for free!", ICLR 2023).

    With images x' = 2 x - 1 the noise is 2 sigma. At the step t with (1 - a_t) / a_t = (2 sigma)^2, a the cumulated
    product of alphas, sqrt(a_t) (x' + noise) is a state of the diffusion, and its x_0 is predicted in one pass.

    Args:
        network: maps (images, steps (B,)) to the noise it sees in them, perhaps with further channels (its variance).
        alphas: (T,) cumulated products, decreasing.
        sigma: of the noise, in pixels of [0, 1].
        size: the network's image side; None: the images'.
    """

    def __init__(self, network: nn.Module, alphas: Tensor, *, sigma: float, size: int | None = None):
        super().__init__()
        self.network, self.size = network, size
        self.step = int(((1 - alphas) / alphas - (2 * sigma) ** 2).abs().argmin())
        self.alpha = float(alphas[self.step])

    def forward(self, images: Tensor) -> Tensor:
        side = images.shape[-2:]
        state = self.alpha**0.5 * (2 * images - 1)
        if self.size is not None:
            state = F.interpolate(state, (self.size, self.size), mode="bilinear", antialias=True)
        steps = torch.full((len(state),), self.step, device=state.device)
        noise = self.network(state, steps)
        noise = getattr(noise, "sample", noise)[:, : state.shape[1]]
        clean = ((state - (1 - self.alpha) ** 0.5 * noise) / self.alpha**0.5).clamp(-1, 1)
        if self.size is not None:
            clean = F.interpolate(clean, side, mode="bilinear", antialias=True)
        return (clean + 1) / 2


class Denoiser(BaseModel):
    """Which denoiser, and how large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["dncnn", "memnet", "diffusion", "identity"] = "dncnn"
    width: PositiveInt = 64  # channels
    depth: PositiveInt = 17  # convolutions of dncnn
    momentum: Number = 0.1  # of dncnn's running statistics; 0.95 in the paper
    weights: str | None = None  # diffusion: a directory of a diffusers pipeline or UNet2DModel
    sigma: Number = 0.25  # diffusion: the noise it takes away, which chooses the step
    size: PositiveInt | None = None  # diffusion: the network's image side; null: the images'

    def build(self, channels: int) -> nn.Module:
        """A fresh denoiser for images of so many channels."""
        match self.name:
            case "dncnn":
                return DnCNN(channels, depth=self.depth, width=self.width, momentum=self.momentum)
            case "memnet":
                return MemNet(channels, width=self.width)
            case "diffusion":
                return _pretrained_diffusion(self)
            case "identity":
                return nn.Identity()


def _pretrained_diffusion(choice: Denoiser) -> nn.Module:
    from robustrun.errors import ConfigError, DataError

    if choice.weights is None:
        raise ConfigError("model.denoiser.weights must name a directory of diffusers weights")
    import_torchvision()  # diffusers imports it as it is, which fails beside a torch for CPUs
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError:
        raise ConfigError("model.denoiser.name=diffusion needs the package diffusers: pip install diffusers") from None
    try:
        nested = {"subfolder": "unet"}
        try:
            network = UNet2DModel.from_pretrained(choice.weights, local_files_only=True, **nested)
            scheduler = DDPMScheduler.from_pretrained(choice.weights, local_files_only=True, subfolder="scheduler")
        except OSError:
            network = UNet2DModel.from_pretrained(choice.weights, local_files_only=True)
            scheduler = DDPMScheduler()
    except (OSError, ValueError) as error:
        raise DataError(f"{choice.weights} holds no diffusers model: {str(error).splitlines()[0]}") from None
    return DiffusionDenoiser(network, scheduler.alphas_cumprod, sigma=choice.sigma, size=choice.size)
