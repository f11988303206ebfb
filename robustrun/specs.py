"""What a task tells a model before it is built: shapes, classes, normalisation. Plain numbers, kept in checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TaskSpec:
    """What a model must accept and return. Plain numbers only: it is stored in every checkpoint."""

    input_shape: tuple[int, ...]

    def state(self) -> dict[str, Any]:
        """As plain numbers and the name of the type, for a checkpoint."""
        return {"type": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "TaskSpec":
        """The spec that `state` wrote down."""
        fields = dict(state)
        spec_type = {cls.__name__: cls for cls in _subclasses(TaskSpec)}[fields.pop("type")]
        return spec_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


@dataclass(frozen=True)
class ClassificationSpec(TaskSpec):
    """Inputs of `input_shape` in natural units (pixels in [0, 1]); the model returns logits (B, classes).

    `mean` and `std` (per channel, or per feature; empty for none) are the normalisation a model applies itself.
    """

    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    box: tuple[float, float] | None = (0.0, 1.0)  # valid range of an input coordinate, None if unbounded


@dataclass(frozen=True)
class SegmentationSpec(TaskSpec):
    """Images of `input_shape` (C, H, W) in [0, 1]; the model returns one of `classes` for every pixel, as logits.

    Images of any other size divisible by 32, crops above all, must be taken too. Pixels labelled `ignore_index` count
    nowhere. `mean` and `std` (per channel; empty for none) are the normalisation a model applies itself.
    """

    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ignore_index: int = 255
    box: tuple[float, float] | None = (0.0, 1.0)


@dataclass(frozen=True)
class RegressionSpec(TaskSpec):
    """The model maps (B, *input_shape) to (B, outputs), both in natural units."""

    outputs: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class DynamicsSpec(TaskSpec):
    """A dynamical system with states (B, *input_shape); `dt` is the sampling interval in seconds.

    The first `angles` coordinates of a state are angles in radians, whose errors count modulo a turn.
    """

    dt: float = 0.01
    angles: int = 0


@dataclass(frozen=True)
class PendulumSpec(DynamicsSpec):
    """An n-link pendulum (see `robustrun.methods.dynamics.NLinkPendulum`), one number a link."""

    masses: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    damping: tuple[float, ...] = ()
    gravity: float = 9.81


@dataclass(frozen=True)
class VideoSpec(TaskSpec):
    """Frames of `input_shape` (C, H, W) in [0, 1], `dt` seconds apart."""

    dt: float = 1 / 30


@dataclass(frozen=True)
class MDPSpec(TaskSpec):
    """A finite MDP: `states` x `actions`."""

    states: int = 1
    actions: int = 1
