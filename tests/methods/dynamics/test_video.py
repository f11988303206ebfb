import math

import numpy as np
import pytest
import torch

from robustrun.methods.dynamics import TEXTURES, latent_loss, sample_latent, standard_normal_divergence, waves


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_reproducible_moving_pictures(name):
    video = TEXTURES[name](40, 24, 32, 3)
    assert video.dtype == np.uint8
    assert video.shape == (40, 24, 32, 3 if name == "fire" else 1)
    np.testing.assert_array_equal(video, TEXTURES[name](40, 24, 32, 3))
    assert (video != TEXTURES[name](40, 24, 32, 4)).any()
    assert video.max() > 200
    assert video.min() < 50
    change = np.abs(np.diff(video.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert (change > 0).all()
    # Continuous motion: neighbours are closer than frames far apart.
    assert change.mean() < np.abs(video[20:].astype(float) - video[:20]).mean()


def test_waves_by_the_sum_of_cosines():
    frames, height, width = 5, 8, 10
    rng = np.random.default_rng(7)
    grid = np.array([(i, j) for i in range(-3, 4) for j in range(-3, 4) if (i, j) != (0, 0)])
    vectors = grid[rng.choice(len(grid), 6, replace=False)]
    phases = rng.uniform(0, 2 * math.pi, 6)
    surface = np.zeros((frames, height, width))
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                for (kx, ky), phase in zip(vectors, phases, strict=True):
                    k = math.hypot(kx, ky)
                    place = 2 * math.pi * (kx * x / width + ky * y / height)
                    surface[t, y, x] += math.cos(place - 0.25 * math.sqrt(k) * t + phase) / k
    expected = 255 * (0.5 + 0.5 * np.tanh(1.5 * surface / surface.std()))
    np.testing.assert_allclose(waves(frames, height, width, 7)[..., 0], expected, atol=0.51)


def test_divergence_from_the_standard_normal():
    mean, log_variance = torch.randn(20, 7), torch.randn(20, 7)
    ours = standard_normal_divergence(mean, log_variance)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(ours, theirs)
    assert (standard_normal_divergence(torch.zeros(3, 7), torch.zeros(3, 7)) == 0).all()


def test_loss_by_hand():
    shape = (2, 3, 4, 6)
    frames, following, decoded, decoded_next = (torch.rand(shape) for _ in range(4))
    mean, log_variance = torch.randn(2, 5), torch.randn(2, 5)
    expected = 0.0
    for b in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(6):
                    expected += (decoded[b, c, i, j] - frames[b, c, i, j]).item() ** 2
                    expected += 10**-0.25 * (decoded_next[b, c, i, j] - following[b, c, i, j]).item() ** 2
        for k in range(5):
            m, v = mean[b, k].item(), log_variance[b, k].item()
            expected += -0.5 * (1 + v - m * m - math.exp(v))
    loss = latent_loss(mean, log_variance, decoded, frames, decoded_next, following)
    assert loss.total(1.0, 10**-0.25).item() == pytest.approx(expected / 2, rel=1e-12)


def test_samples_have_the_asked_moments():
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    generator = torch.Generator().manual_seed(0)
    samples = sample_latent(mean.expand(20_000, 2), log_variance.expand(20_000, 2), generator)
    torch.testing.assert_close(samples.mean(0), mean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(samples.std(0), torch.tensor([1.0, math.e]), rtol=0.02, atol=0)
