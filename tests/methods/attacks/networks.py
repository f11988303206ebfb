"""Small networks that the attack tests share."""

import torch
from torch import nn


class Linear2(nn.Module):
    """Two logits whose difference z_1 - z_0 is w.x + b."""

    def __init__(self, w: torch.Tensor, b: float = 0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        half = (x.flatten(1) @ self.w + self.b) / 2
        return torch.stack([-half, half], 1)


def mlp(seed: int = 0, inputs: int = 16, hidden: int = 32, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)).eval()


def convnet(seed: int = 0, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


class Counted(nn.Module):
    """Counts the calls and the examples that pass through."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls, self.examples = network, 0, 0

    def forward(self, x):
        self.calls, self.examples = self.calls + 1, self.examples + len(x)
        return self.network(x)
