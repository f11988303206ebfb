"""Attacks on a smoothed network: no point inside a certified radius is answered otherwise."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from robustrun.methods.smoothing import ABSTAIN, Gaussian, NoisyVotes, certify

SIGMA, ALPHA = 0.5, 0.001


def spirals(count, seed):
    """Two spirals in the plane, to be told apart."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.rand(count, generator=generator) * 2.5 + 0.5
    labels = torch.arange(count) % 2
    angle = 2.2 * along + torch.pi * labels
    points = torch.stack([angle.cos(), angle.sin()], 1) * along[:, None]
    return points + 0.05 * torch.randn(points.shape, generator=generator), labels


@pytest.fixture(scope="module")
def network():
    """A small network, trained on noise so that certificates are not empty."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    points, labels = spirals(400, 0)
    for _ in range(200):
        loss = nn.functional.cross_entropy(model(points + SIGMA * torch.randn_like(points)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def certificates(model, points):
    votes = NoisyVotes(
        lambda noisy, *_: model(noisy), points, torch.arange(len(points)), noise=Gaussian(SIGMA), seed=3, classes=2
    )
    return certify(votes, len(points), Gaussian(SIGMA), n0=100, n=2000, alpha=ALPHA)


def project(points, centre, radius):
    step = points - centre
    return centre + step * (radius / step.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


def pgd(model, centre, predicted, radius, seed, steps=20, draws=32, restarts=3):
    """Ascent on the expected loss over noise of the smoothed prediction (expectation over transformation)."""
    generator = torch.Generator().manual_seed(seed)
    centre, radius = (value.repeat_interleave(restarts, 0) for value in (centre, radius))
    predicted = predicted.repeat_interleave(restarts)
    x = project(centre + torch.randn(centre.shape, generator=generator) * radius, centre, radius)
    for _ in range(steps):
        x = x.requires_grad_()
        noise = SIGMA * torch.randn(draws, *x.shape, generator=generator)
        log_probability = model(x + noise).softmax(-1).mean(0).log()
        (gradient,) = torch.autograd.grad(-log_probability.gather(1, predicted[:, None]).sum(), x)
        step = 0.25 * radius * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        x = project(x.detach() + step, centre, radius)
    return x.detach(), predicted


def scattered(centre, predicted, radius, seed, count=6):
    """Points on the sphere at random."""
    centre, radius = (value.repeat_interleave(count, 0) for value in (centre, radius))
    direction = torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed))
    return centre + radius * direction / direction.norm(dim=-1, keepdim=True), predicted.repeat_interleave(count)


def flipped(model, points, predicted, draws=2000):
    """Whether fresh votes show, beyond one chance in a million, that the smoothed prediction is another one."""
    generator = torch.Generator().manual_seed(99)
    noise = SIGMA * torch.randn(draws, 2, generator=generator)
    votes = torch.stack(
        [(model(point + noise).argmax(1) == p).sum() for point, p in zip(points, predicted, strict=True)]
    )
    return binom.cdf(votes.numpy(), draws, 0.5) < 1e-6


def attacked(model, share):
    """Whether each certified example is flipped by an attack within `share` of its radius."""
    points, _ = spirals(40, 1)
    found = certificates(model, points)
    certified = (found.prediction != ABSTAIN) & (found.radius > 0)
    centre, predicted = points[certified], torch.from_numpy(found.prediction[certified])
    radius = share * torch.from_numpy(found.radius[certified]).float()[:, None]
    broken = np.zeros(len(centre), dtype=bool)
    for x, label in (pgd(model, centre, predicted, radius, 5), scattered(centre, predicted, radius, 6)):
        assert (
            (x - centre.repeat_interleave(len(x) // len(centre), 0)).norm(dim=1)
            <= radius.repeat_interleave(len(x) // len(centre), 0)[:, 0] * (1 + 1e-5)
        ).all()
        broken |= flipped(model, x, label).reshape(len(centre), -1).any(1)
    return broken


def test_no_attack_inside_the_radius_flips_the_smoothed_prediction(network):
    broken = attacked(network, 0.999)
    assert len(broken) >= 25
    # Each certificate may be wrong with probability alpha; more than so many are no accident.
    assert broken.sum() <= binom.ppf(1 - 1e-6, len(broken), ALPHA)


def test_the_attack_finds_what_there_is_to_find(network):
    """Well outside the radius it does flip predictions: the test above could fail."""
    assert attacked(network, 3.0).mean() > 0.5
