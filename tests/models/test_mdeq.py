"""Multiscale deep equilibrium models: sizes, the cell's invariances, dropout, weight norm, gradients."""

import copy

import pytest
import torch
from torch import nn

from robustrun.methods.attacks import pgd
from robustrun.methods.equilibrium import FixedPointSolver
from robustrun.models.mdeq import MDEQ
from robustrun.models.mdeq_cell import MultiscaleCell, NormedConv
from robustrun.models.mdeq_segmentation import MDEQSegmentation
from robustrun.models.mdeq_settings import Solver
from robustrun.roles import ClassificationSpec, SegmentationSpec

CIFAR = ClassificationSpec(input_shape=(3, 32, 32), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
IMAGENET = ClassificationSpec(input_shape=(3, 224, 224), classes=1000, mean=(0.5,) * 3, std=(0.25,) * 3)
TINY = ClassificationSpec(input_shape=(1, 8, 8), classes=3)
LARGE = {"channels": (32, 64, 128, 256), "widths": (14, 28, 56, 112), "features": 1680}
SMALL_IN = {"channels": (32, 64, 128, 256), "widths": (24, 48, 96, 192), "features": 2048, "halvings": 2}
LARGE_IN = SMALL_IN | {"channels": (80, 160, 320, 640), "widths": (32, 64, 128, 256)}
XL_IN = LARGE_IN | {"channels": (88, 176, 352, 704), "expansion": 6}
TIGHT = Solver(rtol=1e-12)


def tiny(**options):
    """A small network whose cell is a contraction."""
    torch.manual_seed(0)
    settings = {
        "channels": (8, 8, 16), "widths": (2, 2, 4), "features": 5, "groups": 4, "expansion": 2, "dropout": 0.0,
        "solver": TIGHT, "forward_steps": 150, "backward_steps": 150,
    }  # fmt: skip
    model = MDEQ(TINY, **settings | options).double()
    with torch.no_grad():
        for part in model.modules():  # an input that still counts in the logits before any training
            if isinstance(part, nn.Conv2d):
                part.weight.normal_(0, 0.2)
        for branch in model.cell.branches:  # a block that depends on z by little
            branch.norm3.weight.fill_(0.1)
            branch.norm3.bias.normal_()
    return model


def images(batch=3):
    return torch.rand(batch, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("spec", "options", "count", "state"),
    [
        (CIFAR, {}, 158_986, 30_720),
        (CIFAR, {"affine": False}, 158_890, 30_720),
        (CIFAR, {"channels": (8, 16, 32), "widths": (4, 8, 16), "features": 128}, 175_418, None),
        (CIFAR, {"channels": (40,), "widths": (8,)}, 171_946, 40_960),
        (CIFAR, LARGE, 11_098_398, 61_440),
        (CIFAR, LARGE | {"affine": False}, 11_097_438, 61_440),
        (IMAGENET, SMALL_IN, 16_808_936, 188_160),
        (IMAGENET, SMALL_IN | {"expansion": 4, "widths": (28, 56, 112, 224)}, 17_046_296, 188_160),
        (IMAGENET, LARGE_IN, 67_063_624, 470_400),
        (IMAGENET, XL_IN, 90_463_280, 517_440),
    ],
)
def test_sizes_are_the_papers(spec, options, count, state):
    """Parameters, the state of one example, and a step at full resolution."""
    with torch.device("meta"):
        model = MDEQ(spec, unroll=2, **options)
        inputs = torch.zeros(2, *spec.input_shape)
        _, start = model.equation(inputs)
        logits = model(inputs)
        logits.sum().backward()
    assert sum(p.numel() for p in model.parameters()) == count
    assert state is None or start.shape == (2, state)
    assert logits.shape == (2, spec.classes)
    assert all(p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "crop", "count", "state"),
    [
        ({}, (512, 1024), 8_968_467, 1_966_080),
        ({"expansion": 4}, (512, 1024), 7_400_307, 1_966_080),
        ({"channels": (80, 160, 320, 640)}, (512, 1024), 55_955_859, 4_915_200),
        ({"channels": (88, 176, 352, 704), "expansion": 6}, (768, 1024), 79_551_755, 8_110_080),
    ],
)
def test_sizes_of_segmentation_models_are_the_papers(options, crop, count, state):
    with torch.device("meta"):
        spec = SegmentationSpec(input_shape=(3, 1024, 2048), classes=19, mean=(0.5,) * 3, std=(0.25,) * 3)
        model = MDEQSegmentation(spec, unroll=1, **options)
        inputs = torch.zeros(2, 3, *crop)
        _, start = model.equation(inputs)
        logits = model(inputs)
    assert sum(p.numel() for p in model.parameters()) == count
    assert start.shape == (2, state)
    assert logits.shape == (2, 19, *crop)


def test_a_classifiers_trunk_fits_a_segmentation_model():
    torch.manual_seed(0)
    options = {"channels": (8, 16), "groups": 4, "expansion": 2, "halvings": 1}
    classifier = MDEQ(ClassificationSpec(input_shape=(3, 16, 16), classes=5), widths=(2, 4), features=6, **options)
    model = MDEQSegmentation(SegmentationSpec(input_shape=(3, 16, 32), classes=4), **options)
    own, other = model.state_dict(), classifier.state_dict()
    trunk = {k for k in own if k.startswith(("stem.", "cell."))}
    assert trunk == {k for k in other if k.startswith(("stem.", "cell."))}
    assert all(own[k].shape == other[k].shape for k in trunk)
    logits = model(torch.rand(2, 3, 16, 32))
    assert logits.shape == (2, 4, 16, 32)
    logits.square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_parts_have_the_papers_sizes():
    with torch.device("meta"):
        model = MDEQ(CIFAR)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert (count["cell"], count["stem"], count["head"]) == (111_792, 5_928, 41_266)
    assert sum(p.numel() for p in model.cell.branches[0].parameters()) == 52_320


def test_the_initialisation_is_the_papers_codes():
    torch.manual_seed(0)
    model = MDEQ(CIFAR, **LARGE)
    path = torch.cat([conv.weight.flatten() for part in model.cell.paths for conv in part.convs])
    assert path.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.head.down[0][0].bias.std().item() == pytest.approx(0.01, rel=0.3)
    conv = model.cell.branches[3].conv1
    fan_in = conv.v[0].numel()
    assert conv.v.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)
    torch.testing.assert_close(conv.weight(), conv.v)
    plain = MDEQ(CIFAR, init_std=None).cell.paths[0].convs[0].weight
    assert plain.std().item() == pytest.approx((3 * plain[0].numel()) ** -0.5, rel=0.2)


@pytest.mark.parametrize("method", ["broyden", "anderson", "picard"])
def test_the_equilibrium_is_one_and_all_solvers_find_it(method):
    model, x = tiny().eval(), images()
    equation, start = model.equation(x)
    found = FixedPointSolver(method, max_iterations=400, rtol=1e-12).solve(equation, start)
    assert found.converged.all()
    assert found.absolute.max() < 1e-10 * start.shape[1]
    other = FixedPointSolver("broyden", max_iterations=300, rtol=1e-13).solve(equation, start)
    torch.testing.assert_close(found.z, other.z, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_are_those_of_a_deep_unrolled_network(mode):
    model, x = tiny(), images().requires_grad_()
    getattr(model, mode)()
    found = []
    for unroll in (0, 60):
        model.layer.unroll = unroll
        loss = model(x).square().sum()
        found.append(torch.autograd.grad(loss, (x, *model.parameters())))
    assert all(float(g.abs().max()) > 0 for g in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("softplus", [None, 5.0])
def test_gradients_are_those_of_finite_differences(softplus):
    model, x = tiny(softplus=softplus).eval(), images()
    model(x).square().sum().backward()
    names = dict(model.named_parameters())
    for name in ("stem.0.weight", "cell.branches.0.conv1.v", "cell.branches.2.conv2.g", "cell.paths.1.convs.0.weight",
                 "cell.outputs.0.conv.v", "head.linear.weight"):  # fmt: skip
        parameter = names[name]
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                flat[index] += step
                values.append(model(x).square().sum())
            flat[index] += 1e-5
        expected = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(parameter.grad.view(-1)[index], expected, rtol=1e-5, atol=1e-8)


def test_an_attack_in_evaluation_mode_finds_what_it_looks_for():
    """A network that is detached there looks robust."""
    model = tiny(forward_steps=12, backward_steps=12, solver=Solver()).float().eval()
    x = images(8).float()
    labels = model(x).argmax(1)

    def loss(inputs):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")

    result = pgd(model, x, labels, norm="linf", epsilon=0.2, alpha=0.05, steps=5, restarts=1)
    noise = 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert loss(x + result.delta).mean() > loss((x + noise).clamp(0, 1)).mean()


def test_an_example_does_not_depend_on_its_companions():
    model = tiny(solver=Solver(rtol=1e-4)).eval()
    x = images(4)
    with torch.no_grad():
        together = model(x)
        for i in range(4):
            torch.testing.assert_close(model(x[i : i + 1])[0], together[i], rtol=1e-9, atol=1e-9)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(model(x[order]), together[order], rtol=1e-9, atol=1e-9)


def test_weight_norm():
    torch.manual_seed(0)
    conv = NormedConv(3, 4, 3).double()
    with torch.no_grad():
        conv.g.mul_(2)
    before = conv.weight()
    torch.testing.assert_close(before.flatten(1).norm(dim=1), conv.g.flatten())
    (before * torch.randn_like(before)).sum().backward()
    along = (conv.v.grad * conv.v).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-6)
    with torch.no_grad():
        conv.v.mul_(3)
    torch.testing.assert_close(conv.weight(), before)


def test_weights_are_computed_once_a_forward_pass(monkeypatch):
    calls = []
    plain = NormedConv.weight
    monkeypatch.setattr(NormedConv, "weight", lambda self: calls.append(self) or plain(self))
    model = tiny()
    for _ in range(2):
        model(images()).sum().backward()
    assert len(calls) == 2 * 3 * 3  # two passes, three scales, conv1, conv2 and the output


def masks(model):
    return model.equation(images())[0].inputs[1:]


def test_dropout_is_drawn_once_a_pass():
    model = tiny(dropout=0.3).train()
    torch.manual_seed(1)
    first, second = masks(model), masks(model)
    assert [m.shape for m in first] == [(3, c, 1, 1) for c in (8, 8, 16)]
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    kept = torch.cat([m.flatten() for _ in range(200) for m in masks(model)])
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.7}
    error = (0.3 / 0.7 / len(kept)) ** 0.5
    assert abs(kept.mean().item() - 1) < 3 * error
    assert masks(model.eval()) == ()
    assert masks(tiny(dropout=0.0).train()) == ()


def test_the_mask_is_the_same_in_every_iteration_and_in_the_backward_pass(monkeypatch):
    seen = []
    plain = MultiscaleCell.apply_to

    def watched(self, z, inputs, weights):
        seen.append([mask.clone() for mask in inputs[1:]])
        return plain(self, z, inputs, weights)

    monkeypatch.setattr(MultiscaleCell, "apply_to", watched)
    model = tiny(dropout=0.3, solver=Solver(rtol=0.0), forward_steps=4, backward_steps=3)
    model(images()).sum().backward()
    assert len(seen) == 5 + 1
    assert all(torch.equal(a, b) for one in seen[1:] for a, b in zip(seen[0], one, strict=True))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_scale_of_a_path_does_not_matter(factor):
    model, x = tiny().eval(), images()
    for norm in (n for part in model.cell.paths for n in part.norms):
        norm.eps = 1e-10
    for path in model.cell.paths:
        for conv in path.convs:
            with torch.no_grad():
                conv.weight.mul_(30)  # away from the normalisation's epsilon
    z = torch.randn(model.equation(x)[1].shape, dtype=torch.float64)
    before = model.equation(x)[0](z)
    with torch.no_grad():
        model.cell.paths[2].convs[0].weight.mul_(factor)
    torch.testing.assert_close(model.equation(x)[0](z), before, rtol=0, atol=1e-3)


def test_the_input_enters_the_highest_resolution_alone():
    model = tiny()
    cell = model.cell
    with torch.no_grad():
        cell.branches[1].norm3.bias.zero_()
    zero = torch.zeros(2, 8, 4, 4, dtype=torch.float64)
    weights = iter(cell.branches[1].weights()).__next__
    assert cell._block(zero, None, None, weights).abs().max() == 0


def test_softplus_smooths_the_last_nonlinearities_and_tends_to_relu():
    x = images()
    plain, start = tiny().eval().equation(x)
    z = torch.randn(start.shape, dtype=torch.float64)
    with torch.no_grad():
        smooth = [tiny(softplus=beta).eval().equation(x)[0](z) for beta in (1.0, 10.0, 1e4)]
        apart = [float((f - plain(z)).abs().max()) for f in smooth]
    assert apart[0] > 10 * apart[1] > 0
    assert apart[2] < 1e-3
    block = tiny(channels=(8,), widths=(2,), softplus=2.0).cell
    values = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(block._activate(values), torch.log1p((2 * values).exp()) / 2)


def test_the_unrolled_network_is_repeated_application():
    model, x = tiny(unroll=3).eval(), images()
    equation, start = model.equation(x)
    z = equation(equation(equation(start)))
    torch.testing.assert_close(model(x), model.readout(z, x))


def test_copies_and_states():
    model, x = tiny(), images()
    model(x).sum().backward()
    other = copy.deepcopy(model)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))
    fresh = tiny()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(x), model(x))


def test_half_precision_leaves_the_state_in_single():
    model = tiny(solver=Solver(rtol=1e-2)).float().eval()
    x = images().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert model.layer.statistics.forward.z.dtype == torch.float32
    torch.testing.assert_close(logits.float(), model(x), rtol=0.1, atol=0.1)


def test_images_must_be_divisible():
    with pytest.raises(ValueError, match="multiples of 8, not 28 x 28"):
        MDEQ(ClassificationSpec(input_shape=(1, 28, 28), classes=10), **LARGE)
    with pytest.raises(ValueError, match="cannot be divided into 8 groups"):
        MDEQ(CIFAR, channels=(12, 12))
    with pytest.raises(ValueError, match="widths"):
        MDEQ(CIFAR, widths=(8,))
