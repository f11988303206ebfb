"""How wrong a virtual sensor can be: as it is, under attack, and at most (arXiv 2007.00147)."""

import copy
import itertools
import json
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from robustrun.certifiers.examplewise import judge_examples
from robustrun.certifiers.onnx_model import onnx_model
from robustrun.certifiers.sensor_figures import figures
from robustrun.errors import ConfigError
from robustrun.methods.bounds import (
    Ball,
    Bounds,
    Box,
    Network,
    Region,
    alpha_crown_bounds,
    attained_range,
    branch_and_bound,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    interval_bounds,
    lp_bounds,
    milp_bounds,
    trace,
    vnnlib,
    worst_relative_error,
)
from robustrun.numbers import NonNegative, NonNegativeInt, Number, Positive, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, Fitted, Report, SensorTask
from robustrun.runtime import Run

_BOUNDS = {
    "interval": interval_bounds,
    "crown": crown_bounds,
    "dual": dual_bounds,
    "intersection": intersection_bounds,
    "alpha_crown": alpha_crown_bounds,
    "lp": lp_bounds,
}
_KINDS = ("clean", "attacked", "certified")


class Specification(BaseModel):
    """What is asked of the sensor: an error of at most so much for quantities in an interval.

    statistic: "worst" asks it of every operating point, "mean" of their average.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Literal["relative_error"] = "relative_error"
    at_most: NonNegative
    on: tuple[Number, Number] = (0.0, 1.0)
    statistic: Literal["worst", "mean"] = "worst"

    @model_validator(mode="after")
    def _is_not_empty(self) -> "Specification":
        if self.on[0] > self.on[1]:
            raise ValueError(f"the interval on {list(self.on)} is empty: its first end must be the smaller one")
        return self


@certifiers.register("sensor_error")
class SensorError(Certifier):
    """Relative errors of every operating point: clean, the worst that an attack finds, the worst that is possible.

    The worst is over all noise within epsilon times the sensors' tolerances. Everything is computed in float64 and
    the certificate rounded outwards; it is one of the weights as they are, for the operating points tested.

    Args:
        norm, epsilon: the noise: each sensor within epsilon times its tolerance, or all of them in l2.
        method: of the certificate: none, interval, dual (convex outer), crown, alpha_crown, intersection (the best
            of interval, dual and crown), lp, milp (exact, HiGHS), branch_and_bound (exact).
        attack_steps, restarts: of projected gradient ascent and descent.
        gap, time_limit: relative gap at which exact methods stop; seconds an example, after which what is proven
            so far counts.
        floor: quantities below it count as this much in a relative error.
        clamp: predictions are clamped to [0, 1] before they are used.
        interval: the quantities that matter most; metrics ending in "inside" are about them.
        bins: ends of the intervals of the quantity that errors_by_interval.csv reports one by one.
        spec: what to prove or refute.
        export: so many operating points as ONNX + VNN-LIB properties (of the spec, else of the certificate).
        state: which state of the fitted model.
        split, examples, stride, batch_size, shard: which operating points.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 1.0,
        method: Literal[
            "none", "interval", "dual", "crown", "alpha_crown", "intersection", "lp", "milp", "branch_and_bound"
        ] = "intersection",
        attack_steps: PositiveInt = 50,
        restarts: PositiveInt = 5,
        gap: Positive = 1e-4,
        time_limit: Positive = 60.0,
        floor: NonNegative = 0.0,
        clamp: bool = False,
        interval: tuple[Number, Number] = (0.6, 1.0),
        bins: tuple[Number, ...] = (0.05, 0.2, 0.4, 0.6, 1.0),
        spec: Specification | None = None,
        export: NonNegativeInt = 0,
        state: str = "last",
        split: Literal["train", "valid", "test"] = "test",
        examples: PositiveInt | None = None,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 500,
        shard: str | None = None,
    ):
        if norm == "l2" and (method in ("lp", "milp", "branch_and_bound") or export):
            raise ConfigError("linear programs and VNN-LIB know boxes only: use threat.norm=linf, or another method")
        if list(bins) != sorted(set(bins)) or len(bins) < 2:
            raise ConfigError(f"certifier.bins {list(bins)} must be two or more rising numbers")
        self.norm, self.epsilon, self.method = norm, epsilon, method
        self.attack_steps, self.restarts, self.gap, self.time_limit = attack_steps, restarts, gap, time_limit
        self.floor, self.clamp, self.bins, self.spec, self.export = floor, clamp, bins, spec, export
        self.interval, self.state = interval, state
        self.selection = {
            "split": split, "examples": examples, "stride": stride, "batch_size": batch_size, "shard": shard,
        }  # fmt: skip

    def certify(self, task: SensorTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        model = fitted.at(self.state)
        network = trace(copy.deepcopy(model).double(), task.spec.input_shape)
        columns = judge_examples(
            lambda batch: self.judge(task, network, batch, run), task, run, description=self.method, **self.selection
        )
        metrics = self._metrics(columns)
        files = {"errors_by_interval.csv": self._by_bin(columns)}
        sentence = self._sentence(columns, task)
        if self.spec:
            verdict = self._verdict(columns, task)
            metrics |= {f"spec_{answer}": float(answer == verdict["answer"]) for answer in ("holds", "violated")}
            files["specification.json"] = json.dumps(verdict, indent=1).encode()
            sentence = f"{verdict['answer'].upper()}: {verdict['sentence']}"
        run.logger.info("%s", sentence)
        if self.export:
            files |= self._export(task, model, columns, run)
        kinds = [kind for kind in _KINDS if f"{kind}_error" in columns]
        return Report(
            metrics, columns, figures(columns, kinds, task.quantity), {"examples": len(columns["index"])}, files
        )

    def region(self, task: SensorTask, inputs: Tensor) -> Region:
        """The readings that the noise can make of inputs (B, sensors)."""
        shape = Box if self.norm == "linf" else Ball
        return shape.around(inputs, self.epsilon * task.tolerance(inputs))

    def judge(self, task: SensorTask, network: Network, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Predictions, attained and certified intervals, and their errors, for one batch."""
        inputs, y = batch.inputs.double(), batch.targets.double().squeeze(1)
        region = self.region(task, inputs)
        generator = run.generator("certify", int(batch.indices[0]), device=inputs.device)
        found = attained_range(
            network, region, steps=self.attack_steps, restarts=self.restarts, start=inputs, generator=generator
        )
        with torch.no_grad():
            predicted = network(inputs).squeeze(1)
            attained, at_lower, at_upper = found.bounds, found.at_lower, found.at_upper
            columns = {}
            certified = None
            if self.method in ("milp", "branch_and_bound"):
                limit = self.time_limit * (len(y) if self.method == "branch_and_bound" else 1)
                solve = milp_bounds if self.method == "milp" else branch_and_bound
                exact = solve(network, region, gap=self.gap, time_limit=limit)
                certified, columns["solved"] = exact.certified, exact.solved
                at_lower = torch.where((exact.attained.lower < attained.lower).unsqueeze(1), exact.at_minimum, at_lower)
                at_upper = torch.where((exact.attained.upper > attained.upper).unsqueeze(1), exact.at_maximum, at_upper)
                attained = Bounds(
                    torch.minimum(attained.lower, exact.attained.lower),
                    torch.maximum(attained.upper, exact.attained.upper),
                )
            elif self.method != "none":
                certified = Bounds(*(side.squeeze(1) for side in _BOUNDS[self.method](network, region)))
            over = attained.upper - y >= y - attained.lower
            worst = torch.where(over.unsqueeze(1), at_upper, at_lower)
        intervals = {"clean": Bounds(predicted, predicted), "attacked": attained, "certified": certified}
        columns = {"target": y, "predicted": predicted, **columns}
        for kind, sides in intervals.items():
            if sides is None:
                continue
            lower, upper = (s.clamp(0, 1) for s in sides) if self.clamp else sides
            if kind != "clean":
                columns |= {f"{kind}_lower": lower, f"{kind}_upper": upper}
            columns[f"{kind}_error"] = worst_relative_error(lower, upper, y, self.floor)
        # the counterexample of every operating point: the readings at which the attack does worst
        return columns | {f"worst_x{j}": worst[:, j] for j in range(worst.shape[1])}

    def _metrics(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        y = columns["target"]
        inside = (y >= self.interval[0]) & (y <= self.interval[1])
        kinds = [kind for kind in _KINDS if f"{kind}_error" in columns]
        metrics = {f"{kind}_error": float(columns[f"{kind}_error"].mean()) for kind in kinds}
        metrics[f"{kinds[-1]}_error_max"] = float(columns[f"{kinds[-1]}_error"].max())
        if inside.any():
            metrics |= {f"{kind}_error_inside": float(columns[f"{kind}_error"][inside].mean()) for kind in kinds}
            metrics[f"{kinds[-1]}_error_inside_max"] = float(columns[f"{kinds[-1]}_error"][inside].max())
        if "solved" in columns:
            metrics["solved"] = float(columns["solved"].mean())
        return metrics

    def _by_bin(self, columns: dict[str, np.ndarray]) -> bytes:
        """Mean, 95th percentile and maximum of every error, overall and for every interval of the quantity."""
        y = columns["target"]
        lines = ["from,to,points,error,mean,p95,max"]
        edges = [(self.bins[0], self.bins[-1]), *itertools.pairwise(self.bins)]
        for low, high in edges:
            inside = (y >= low) & ((y <= high) if high == self.bins[-1] else (y < high))
            for kind in (k for k in _KINDS if f"{k}_error" in columns and inside.any()):
                errors = columns[f"{kind}_error"][inside]
                figures = ",".join(f"{v:.6f}" for v in (errors.mean(), np.quantile(errors, 0.95), errors.max()))
                lines.append(f"{low:g},{high:g},{inside.sum()},{kind},{figures}")
        return ("\n".join(lines) + "\n").encode()

    def _sentence(self, columns: dict[str, np.ndarray], task: SensorTask) -> str:
        kind = "certified" if "certified_error" in columns else "attacked"
        errors = columns[f"{kind}_error"]
        says = "is proven to be at most" if kind == "certified" else "was driven to"
        return (
            f"under any noise within {self.epsilon:g} x tolerance the relative error of {task.quantity} {says} "
            f"{errors.mean():.2%} on average and {errors.max():.2%} in the worst case "
            f"({self.method}, {len(errors)} points)"
        )

    def _verdict(self, columns: dict[str, np.ndarray], task: SensorTask) -> dict:
        """Whether the specification holds, is violated (with the readings that show it), or is open."""
        spec, y = self.spec, columns["target"]
        inside = (y >= spec.on[0]) & (y <= spec.on[1])
        if not inside.any():
            raise ConfigError(f"certifier.spec.on {list(spec.on)} contains none of the quantities tested")
        reduce = np.max if spec.statistic == "worst" else np.mean
        reached = float(reduce(columns["attacked_error"][inside]))
        proven = float(reduce(columns["certified_error"][inside])) if "certified_error" in columns else np.inf
        answer = "holds" if proven <= spec.at_most else "violated" if reached > spec.at_most else "unknown"
        limit = f"at most {proven:.2%}" if np.isfinite(proven) else "not bounded"
        verdict = {
            "answer": answer,
            "sentence": (
                f"the {spec.statistic} relative error over {inside.sum()} points with quantity in [{spec.on[0]:g}, "
                f"{spec.on[1]:g}], for any noise within {self.epsilon:g} x tolerance, is asked to be at most "
                f"{spec.at_most:.2%}; it is {limit} ({self.method}) and reaches {reached:.2%}"
            ),
            "at_most": spec.at_most,
            "proven": proven if np.isfinite(proven) else None,
            "reached": reached,
        }
        if answer == "violated":
            rows = np.flatnonzero(inside)
            i = rows[columns["attacked_error"][rows].argmax()]
            readings = {name.split(" [")[0]: float(columns[f"worst_x{j}"][i]) for j, name in enumerate(task.sensors)}
            over = columns["attacked_upper"][i] - y[i] >= y[i] - columns["attacked_lower"][i]
            verdict["counterexample"] = {
                "index": int(columns["index"][i]),
                "scale": f"readings are fractions of their sensors' ranges, {task.quantity} of {task.maximum:g}",
                "readings": readings,
                "predicted": float(columns["attacked_upper" if over else "attacked_lower"][i]),
                "target": float(y[i]),
                "relative_error": float(columns["attacked_error"][i]),
            }
        return verdict

    def _export(self, task: SensorTask, model: nn.Module, columns: dict[str, np.ndarray], run: Run) -> dict[str, bytes]:
        if self.spec is None and "certified_error" not in columns:
            raise ConfigError("certifier.export needs something to claim: a certifier.spec, or a method that certifies")
        files = {"properties/model.onnx": onnx_model(model, task.spec.input_shape[0])}
        y = columns["target"]
        inside = (y >= self.spec.on[0]) & (y <= self.spec.on[1]) if self.spec else np.ones(len(y), dtype=bool)
        rows, answers = np.flatnonzero(inside)[: self.export], []
        loader = task.loader(self.selection["split"], len(rows), run, indices=columns["index"][rows].tolist())
        region = self.region(task, next(iter(loader.epoch(0))).inputs.double())
        for n, i in enumerate(rows):
            if self.spec:
                radius = self.spec.at_most * max(y[i], self.floor)
                low, high, claim = y[i] - radius, y[i] + radius, f"relative error <= {self.spec.at_most:g}"
            else:
                low, high = columns["certified_lower"][i], columns["certified_upper"][i]
                claim = f"certified by {self.method}"
            name = f"properties/{columns['index'][i]:05d}.vnnlib"
            text = f"operating point {columns['index'][i]}, quantity {y[i]:.6f}: {claim}\nunsat: proved; sat: refuted"
            files[name] = vnnlib(region.lower[n].cpu(), region.upper[n].cpu(), float(low), float(high), text).encode()
            holds = (
                "certified_error" in columns
                and columns["certified_lower"][i] > low
                and columns["certified_upper"][i] < high
            )
            broken = columns["attacked_lower"][i] <= low or columns["attacked_upper"][i] >= high
            answers.append((name, "unsat" if holds else "sat" if broken else "unknown"))
        files["properties/instances.csv"] = "".join(f"model.onnx,{n.split('/')[1]},{a}\n" for n, a in answers).encode()
        return files
