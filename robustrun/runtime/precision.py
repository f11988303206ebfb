"""Which device a job runs on, in which arithmetic, and whether the networks are compiled."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from robustrun.errors import ConfigError

PrecisionName = Literal["auto", "float32", "tf32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Precision:
    """Arithmetic of the network passes; parameters, statistics and certificates stay in float32 or better.

    `float32` is exact single precision, `tf32` lets CUDA multiply matrices with 10-bit mantissas, `bfloat16`
    and `float16` run the passes under autocast (float16 with loss scaling, see `scaler`). `compiled` networks
    pass through torch.compile, which takes up to some minutes at first; gradients of gradients do not exist then,
    and a bare `nn.Sequential` is passed over, as torch does.
    """

    name: Literal["float32", "tf32", "bfloat16", "float16"]
    device_type: str
    channels_last: bool
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions are computed in."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager:
        """The context for forward passes."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    @cached_property
    def scaler(self) -> "torch.amp.GradScaler":
        """Loss scaling: active under float16 only, elsewhere it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "float16")

    @property
    def memory_format(self) -> torch.memory_format:
        """How images (B, C, H, W) lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model on the device, in the memory format of this precision (parameters stay float32)."""
        model = model.to(device=device, memory_format=self.memory_format)
        if self.compiled:
            model.compile()  # in place: names of parameters, checkpoints and the class stay as they are
        return model


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `runtime.device` means here: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: it is not a device, or this machine has none of the kind.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"runtime.device={name} is not a device: use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            build = "CPU" if torch.version.cuda is None and torch.version.hip is None else "GPU"
            raise ConfigError(
                f"runtime.device={name}, but no GPU is visible to this torch ({build} build): leave runtime.device=auto"
            )
        count = torch.cuda.device_count()
        index = device.index if device.index is not None else local_rank % count
        if index >= count:
            raise ConfigError(f"runtime.device={name}, but this machine has {count} GPU(s), numbered from 0")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device=mps, but this torch has no Metal device: leave runtime.device=auto")
    return device


def choose_precision(
    name: PrecisionName, device: torch.device, *, compile: bool = False, channels_last: bool | None = None
) -> Precision:
    """`auto` is bfloat16 on CUDA and float32 elsewhere; `channels_last=None` is false in float32, true otherwise.

    Raises:
        ConfigError: the device cannot compute in that precision, or there is no compiler.
    """
    on_cuda = device.type == "cuda"
    if name == "auto":
        name = "float32"
        if on_cuda:
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if name not in ("float32", "tf32", "bfloat16", "float16"):
        raise ConfigError(f"runtime.precision={name} is not known: use auto, float32, tf32, bfloat16 or float16")
    if name == "tf32" and not on_cuda:
        raise ConfigError(f"runtime.precision=tf32 needs a CUDA device, not {device.type}: use float32")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("runtime.precision=float16 needs a GPU: use float32 or bfloat16 on a CPU")
    if compile and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ConfigError("runtime.compile=true needs a C++ compiler on a CPU: install g++, or leave it out")
    if channels_last is None:
        channels_last = name != "float32"
    return Precision(name, device.type, channels_last=channels_last, compiled=compile)


@contextmanager
def numerics(precision: Precision, *, threads: int | None, deterministic: bool) -> Iterator[None]:
    """Set torch's process-wide switches for a job and put them back afterwards."""
    # Not through `fp32_precision`: once that is used, whoever reads `allow_tf32` gets an error.
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.set_float32_matmul_precision("highest" if precision.name == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision.name != "float32"
    torch.backends.cudnn.benchmark = not deterministic
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)  # loads the compiler: not called for nothing
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.cudnn.benchmark = before[2]
        torch.set_num_threads(before[3])
        if deterministic:
            torch.use_deterministic_algorithms(before[4], warn_only=before[5])
