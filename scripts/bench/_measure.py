"""What the benchmarks share: the clock, turns in one process, and claims handed on to `scripts/bench/run`."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

HAND_ON = "ROBUSTRUN_BENCH_JSON"  # names the file that claims are appended to, one JSON object a line


def clock_name() -> str:
    """`processor` (one thread on CPUs: other work on the machine does not count) or `wall`."""
    return "processor" if torch.get_num_threads() == 1 and not torch.cuda.is_available() else "wall"


def clock() -> float:
    """Seconds of work so far, by the clock that `clock_name` names."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if clock_name() == "processor" else time.perf_counter()


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = clock()
    call()
    return clock() - begin


def fastest(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    return min(turns({"": call}, rounds)[""])


def turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in each round, after a round to warm up; they take turns, so that a neighbour hits all."""
    taken = [{name: timed(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {name: [seconds[name] for seconds in taken] for name in ways}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """How many times as long theirs took, round by round."""
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def command_seconds(outputs: Path, *arguments: str) -> tuple[float, float]:
    """Wall and processor seconds of `robustrun ARGUMENTS`, the start of python included."""

    def busy() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    environment = {**os.environ, "ROBUSTRUN_OUTPUTS": str(outputs)}
    command = [sys.executable, "-m", "robustrun.cli", *arguments]
    wall, processor = time.perf_counter(), busy()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - wall, busy() - processor


def claim(
    what: str,
    values: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    against: str = "",
    unit: str = "x",
    clock: str | None = None,
) -> None:
    """Prints a claim with what was measured of it, and hands it on if `$ROBUSTRUN_BENCH_JSON` names a file.

    Args:
        values: one a repetition; their median counts.
        at_least, at_most: the target, one of the two.
        against: what the ratio is to.
        unit: "x" for ratios, "s", "GB", or "" for a bare number.
        clock: that the values come from; `clock_name()` unless given, "" for what no clock measures.
    """
    target = at_most if at_least is None else at_least
    middle = statistics.median(values)
    met = middle >= target if at_most is None else middle <= target
    words = f"{'at least' if at_most is None else 'at most'} {target:.4g} {unit}".rstrip()
    spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
    beside = f" against {against}" if against else ""
    found = f"{middle:.4g} {unit}".rstrip() + spread
    print(f"  {what}{beside}: {found}, {words}: {'met' if met else 'missed'}", flush=True)
    if file := os.environ.get(HAND_ON):
        record = {
            "what": what, "against": against, "unit": unit, "values": [float(value) for value in values],
            "at_least": at_least, "at_most": at_most, "met": bool(met), "threads": torch.get_num_threads(),
            "clock": clock_name() if clock is None else clock,
        }  # fmt: skip
        with Path(file).open("a") as lines:
            lines.write(json.dumps(record) + "\n")
