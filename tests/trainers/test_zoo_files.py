"""Files laid out as those of the RobustBench zoo load as they are: names, prefixes, constants, the function."""

import pytest
import torch
import torch.nn.functional as F

from robustrun.errors import ConfigError
from robustrun.models.preact_resnet import PreActResNet18
from robustrun.models.wide_resnet import WideResNet
from robustrun.roles import ClassificationSpec
from robustrun.tasks.images import Images
from robustrun.trainers.ready import Load

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
SPEC = ClassificationSpec((3, 32, 32), 10, MEAN, STD)


def norm(state, name, channels):
    state[f"{name}.weight"], state[f"{name}.bias"] = 0.5 + torch.rand(channels), 0.1 * torch.randn(channels)
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(channels), 0.5 + torch.rand(channels)
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def conv(state, name, into, out, size):
    state[f"{name}.weight"] = torch.randn(out, into, size, size) / (into * size**2) ** 0.5


def linear(state, name, into, out):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, into) / into**0.5, torch.randn(out)


def preact_state(width=64):
    """The zoo's PreActResNet18: conv1, layer1-4 of blocks 0 and 1, bn, linear."""
    state, channels = {}, width
    conv(state, "conv1", 3, width, 3)
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            norm(state, f"{name}.bn1", channels)
            conv(state, f"{name}.conv1", channels, out, 3)
            norm(state, f"{name}.bn2", out)
            conv(state, f"{name}.conv2", out, out, 3)
            if channels != out:
                conv(state, f"{name}.shortcut.0", channels, out, 1)
            channels = out
    norm(state, "bn", channels)
    linear(state, "linear", channels, 10)
    return state


def wide_state(depth, factor):
    """The zoo's WideResNet: conv1, block1-3 of layer.0, layer.1, ..., bn1, fc."""
    state, channels = {}, 16
    conv(state, "conv1", 3, 16, 3)
    for group in range(3):
        out = 16 * factor * 2**group
        for block in range((depth - 4) // 6):
            name = f"block{group + 1}.layer.{block}"
            norm(state, f"{name}.bn1", channels)
            conv(state, f"{name}.conv1", channels, out, 3)
            norm(state, f"{name}.bn2", out)
            conv(state, f"{name}.conv2", out, out, 3)
            if channels != out:
                conv(state, f"{name}.convShortcut", channels, out, 1)
            channels = out
    norm(state, "bn1", channels)
    linear(state, "fc", channels, 10)
    return state


def normalised(state, name, x):
    return F.batch_norm(
        x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), training=False
    )


def by_hand(state, x, blocks, last, head, shortcut, project_input):
    """The network's logits, computed from nothing but the file."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    x = F.conv2d((x - mean) / std, state["conv1.weight"], padding=1)
    for name, stride in blocks:
        a = F.relu(normalised(state, f"{name}.bn1", x))
        side = x
        if f"{name}.{shortcut}.weight" in state:
            side = F.conv2d(x if project_input else a, state[f"{name}.{shortcut}.weight"], stride=stride)
        a = F.conv2d(a, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        x = F.conv2d(F.relu(normalised(state, f"{name}.bn2", a)), state[f"{name}.conv2.weight"], padding=1) + side
    x = F.relu(normalised(state, last, x)).mean((2, 3))
    return F.linear(x, state[f"{head}.weight"], state[f"{head}.bias"])


def test_a_preact_resnet_of_the_zoo(run, tmp_path):
    torch.manual_seed(0)
    state = preact_state(width=8)
    constants = {"mu": torch.tensor(MEAN).view(3, 1, 1), "sigma": torch.tensor(STD).view(3, 1, 1)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in (state | constants).items()}}, tmp_path / "zoo.pt")
    model = PreActResNet18(SPEC, width=8, shortcut_on="input")
    fitted = Load(path=str(tmp_path / "zoo.pt")).fit(Images(dataset="cifar10"), model, run)
    x = torch.rand(4, 3, 32, 32)
    blocks = [(f"layer{s}.{b}", 2 if s > 1 and b == 0 else 1) for s in (1, 2, 3, 4) for b in (0, 1)]
    expected = by_hand(state, x, blocks, "bn", "linear", "shortcut.0", project_input=True)
    torch.testing.assert_close(fitted.at("last")(x), expected, atol=1e-4, rtol=1e-4)


def test_a_wide_resnet_of_the_zoo(run, tmp_path):
    torch.manual_seed(0)
    state = wide_state(16, 1)
    # some files carry the first group twice, the copy unused
    copy = {f"sub_{name}": value for name, value in state.items() if name.startswith("block1.")}
    torch.save(state | copy, tmp_path / "zoo.pt")
    model = WideResNet(SPEC, depth=16, widen_factor=1)
    fitted = Load(path=str(tmp_path / "zoo.pt")).fit(Images(dataset="cifar10"), model, run)
    x = torch.rand(4, 3, 32, 32)
    blocks = [(f"block{g}.layer.{b}", 2 if g > 1 and b == 0 else 1) for g in (1, 2, 3) for b in (0, 1)]
    expected = by_hand(state, x, blocks, "bn1", "fc", "convShortcut", project_input=False)
    torch.testing.assert_close(fitted.at("last")(x), expected, atol=1e-4, rtol=1e-4)


def test_the_papers_sizes_have_the_zoos_names_and_shapes():
    with torch.device("meta"):
        files = preact_state(), wide_state(28, 10), wide_state(34, 10)
        models = PreActResNet18(SPEC), WideResNet(SPEC, depth=28), WideResNet(SPEC, depth=34)
    for file, model in zip(files, models, strict=True):
        ours = {name: value.shape for name, value in model.state_dict().items()}
        assert ours == {name: value.shape for name, value in file.items()}


def test_other_constants_are_refused(run, tmp_path):
    state = wide_state(10, 1) | {"mean": torch.tensor([0.5, 0.5, 0.5]), "std": torch.tensor([0.5, 0.5, 0.5])}
    torch.save(state, tmp_path / "zoo.pt")
    load, task = Load(path=str(tmp_path / "zoo.pt")), Images(dataset="cifar10")
    with pytest.raises(ConfigError, match="normalises by mean"):
        load.fit(task, WideResNet(SPEC, depth=10, widen_factor=1), run)
    halves = ClassificationSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert load.fit(task, WideResNet(halves, depth=10, widen_factor=1), run)
    with pytest.raises(ConfigError, match="does not hold weights"):
        load.fit(task, PreActResNet18(halves), run)


def test_a_zoo_file_is_evaluated_from_the_command_line(cli, tmp_path):
    torch.manual_seed(0)
    torch.save({"state_dict": wide_state(10, 1)}, tmp_path / "zoo.pt")
    chosen = ["task=cifar10", "task.test_limit=10", "model=wide_resnet", "model.depth=10", "model.widen_factor=1"]
    done = cli(*chosen, "trainer=load", f"trainer.path={tmp_path / 'zoo.pt'}", "certifier=accuracy")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
