"""Objectives for features without labels: against their definitions, and on data whose answer is known."""

import math

import torch
import torch.nn.functional as F

from robustrun.methods.features import contrast_normalised, nt_xent, random_patches, rica_loss, zca

torch.set_num_threads(1)


def test_nt_xent_is_its_definition():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    views = [v / v.norm() for v in (*a, *b)]
    total = 0.0
    for i, own in enumerate(views):
        scores = {j: float(own @ other) / 0.5 for j, other in enumerate(views) if j != i}
        total += math.log(sum(math.exp(s) for s in scores.values())) - scores[(i + 3) % 6]
    assert abs(float(nt_xent(a, b, 0.5)) - total / 6) < 1e-5
    assert nt_xent(a, a) < nt_xent(a, b)


def test_patches_are_pieces_of_their_images():
    images = torch.arange(2 * 3 * 7 * 9.0).view(2, 3, 7, 9)
    patches = random_patches(images, 4, torch.Generator().manual_seed(1)).view(2, 3, 4, 4)
    for image, patch in zip(images, patches, strict=True):
        at = [(i, j) for i in range(4) for j in range(6) if torch.equal(image[:, i : i + 4, j : j + 4], patch)]
        assert len(at) == 1


def test_whitening_makes_the_covariance_the_identity():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 4, generator=g, dtype=torch.float64) + 3
    mean, matrix = zca(x, 0.0)
    white = (x - mean) @ matrix
    torch.testing.assert_close(white.T @ white / 4000, torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(matrix, matrix.T)


def test_contrast_normalisation_forgets_brightness_and_contrast():
    x = torch.rand(6, 30)
    torch.testing.assert_close(
        contrast_normalised(x, floor=0.0), contrast_normalised(0.3 * x + 0.1, floor=0.0), atol=1e-4, rtol=0
    )
    assert contrast_normalised(torch.ones(1, 30)).abs().max() == 0


def test_rica_finds_independent_sources():
    g = torch.Generator().manual_seed(0)
    sources = torch.rand(5000, 2, generator=g).sub(0.5).sign() * torch.rand(5000, 2, generator=g).log()  # Laplacian
    angle = torch.tensor(0.6)
    mixing = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    x = sources @ mixing.T
    x = x / x.std(0)
    mean, matrix = zca(x, 0.0)
    white = (x - mean) @ matrix
    filters = torch.nn.Parameter(torch.randn(2, 2, generator=g))
    optimizer = torch.optim.Adam([filters], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        rica_loss(filters, white, beta=5.0).backward()
        optimizer.step()
    code = white @ F.normalize(filters.detach(), dim=1).T
    match = torch.corrcoef(torch.cat([code, sources], 1).T)[:2, 2:].abs()
    assert match.amax(1).min() > 0.97  # each code is one source
    assert match.argmax(1).unique().numel() == 2
    longer = rica_loss(7 * filters, white).item()
    assert abs(longer - rica_loss(filters, white).item()) < 1e-4
