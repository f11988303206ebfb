"""Registered models of dynamics: parameter counts of the paper, variants, refusals."""

import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.methods.dynamics import StateMap, VectorField
from robustrun.methods.lyapunov import StableDynamics, StableMap, WarpedLyapunov
from robustrun.models.dynamics import energy_dynamics, free_dynamics, rest, stable_dynamics, stable_map
from robustrun.models.latent_video import ConvolutionalVideo
from robustrun.models.lyapunov_parts import FieldConfig, LyapunovConfig
from robustrun.registry import models
from robustrun.roles import DynamicsSpec, PendulumSpec, VideoSpec
from robustrun.schema import validate


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("links", "stable", "free"), [(1, 14_625, 14_154), (8, 19_133, 17_416)])
def test_parameter_counts_are_the_papers(links, stable, free):
    spec = DynamicsSpec((2 * links,))
    assert count(stable_dynamics(spec)) == stable
    assert count(free_dynamics(spec)) == free


def test_video_parameter_counts_and_shapes_are_the_papers():
    dynamics = FieldConfig(
        hidden=(320, 320),
        lyapunov=LyapunovConfig(network="leaky", hidden=(200, 200), outer_width=0, epsilon=0.01),
    )
    model = ConvolutionalVideo(VideoSpec((3, 240, 320)), dynamics=dynamics)
    assert count(model.coder) == 15_800_099
    assert count(model.latent) == 476_680
    sizes, x = [], torch.rand(1, 3, 240, 320)
    with torch.no_grad():
        for layer in model.coder.encoder:
            x = layer(x)
            if isinstance(layer, torch.nn.Conv2d):
                sizes.append(tuple(x.shape[2:]))
        assert sizes == [(116, 156), (54, 74), (25, 35), (11, 16), (9, 14)]
        mean, log_variance = model.encode(torch.rand(1, 3, 240, 320))
        assert mean.shape == log_variance.shape == (1, 320)
        picture = model.decode(torch.randn(2, 320))
    assert picture.shape == (2, 3, 240, 320)
    assert picture.min() < 0.5 < picture.max()


def test_the_published_activation_cannot_show_dark_pixels():
    spec = VideoSpec((3, 120, 120))
    dark = ConvolutionalVideo(spec, latent=8, relu_before_sigmoid=True, dynamics=FieldConfig(hidden=(8,)))
    with torch.no_grad():
        assert dark.decode(torch.randn(3, 8)).min() >= 0.5


@pytest.mark.parametrize("size", [(240, 320), (121, 163), (128, 128)])
def test_the_decoder_gives_back_the_size(size):
    model = ConvolutionalVideo(VideoSpec((1, *size)), latent=4, dynamics=FieldConfig(hidden=(8,)))
    with torch.no_grad():
        assert model(torch.rand(1, 1, *size)).shape == (1, 1, *size)


def test_small_pictures_need_the_small_architecture():
    with pytest.raises(ConfigError, match="architecture=small"):
        ConvolutionalVideo(VideoSpec((1, 32, 32)))
    with pytest.raises(ConfigError, match="divide by 4"):
        ConvolutionalVideo(VideoSpec((1, 30, 32)), architecture="small")


VARIANTS = {
    "paper": {},
    "relu": {"network": "relu"},
    "leaky": {"network": "leaky", "outer_width": 0.0},
    "plain": {"network": "plain"},
    "quadratic": {"centred": True, "quadratic": True},
    "inside": {"warp": "inside"},
    "outside": {"warp": "outside"},
    "folded": {"warp": "folded"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dimension", [1, 6])
def test_every_variant_decreases_its_v(variant, dimension):
    lyapunov = LyapunovConfig(**VARIANTS[variant])
    model = stable_dynamics(DynamicsSpec((dimension,)), alpha=0.3, lyapunov=lyapunov).double()
    assert isinstance(model, StableDynamics)
    x = 3 * torch.randn(500, dimension, dtype=torch.float64)
    assert model.decrease(x).relative.max() <= 1e-12
    assert isinstance(model.lyapunov, WarpedLyapunov) == (variant in ("inside", "outside", "folded"))
    assert model.lyapunov.stationary_only_at_zero == (variant not in ("plain", "outside", "folded"))
    # Nothing is frozen: the loss reaches every parameter but those of the output's cancelled bias.
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_energy_as_lyapunov_function():
    spec = PendulumSpec((4,), angles=2, masses=(1.0, 1.0), lengths=(0.5, 0.5), damping=(0.3, 0.3))
    model = energy_dynamics(spec, alpha=0.0).double()
    x = torch.randn(200, 4, dtype=torch.float64)
    assert model.decrease(x).relative.max() <= 1e-12
    assert not model.lyapunov.stationary_only_at_zero


def test_maps():
    spec = DynamicsSpec((3,))
    model = stable_map(spec, beta=0.9)
    assert isinstance(model, StableMap)
    assert isinstance(rest(spec), StateMap)
    assert (rest(spec)(torch.randn(5, 3)) == 0).all()
    assert isinstance(free_dynamics(spec), VectorField)
    for bad in ({"network": "plain"}, {"warp": "inside"}):
        with pytest.raises(ConfigError, match="convex V"):
            stable_map(spec, lyapunov=LyapunovConfig(**bad))


def test_impossible_configurations_are_one_sentence():
    wrong = {"lyapunov": {"network": "plain", "centred": True}}
    with pytest.raises(ConfigError, match="convex network lies above its tangent"):
        validate(models["stable_dynamics"], wrong, "model")
    for wrong, message in (
        ({"alpha": -1}, "model.alpha"),
        ({"lyapunov": {"epsilon": 0}}, "model.lyapunov.epsilon"),
        ({"lyapunov": {"warp": "insid"}}, "model.lyapunov.warp"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(models["stable_dynamics"], wrong, "model")
    with pytest.raises(ConfigError, match="beta"):
        validate(models["stable_map"], {"beta": 1.5}, "model")
