"""`robustrun table` over many finished runs: the first look, which reads them all, and every later one.

    python scripts/bench/table.py --runs 10000

Seconds of the wall, and of the processor in brackets.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from _measure import claim, clock_name, command_seconds


def build(outputs: Path, runs: int) -> None:
    """Finished runs of fast_at's CIFAR-10 experiment, each a job of its own, with the files a run leaves."""
    for i in range(runs):
        directory = outputs / "fast_at_cifar" / f"{i:012x}"
        directory.mkdir(parents=True)
        result = {
            "schema": 1, "exp": "fast_at_cifar", "paper": "fast_at", "metrics": {"robust_accuracy": 0.4},
            "timings": {"train": 700.0}, "seed": i % 3, "config_sha256": f"{i:064x}", "env": {"device": "none"},
            "overrides": ["+exp=fast_at_cifar"], "finished_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        (directory / "result.json").write_text(json.dumps(result, indent=2))
        (directory / "config.yaml").write_text("seed: 0\n")
        (directory / ".job").write_text(result["config_sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the looks at what has been seen before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        outputs = Path(directory) / "outputs"
        build(outputs, arguments.runs)
        os.environ["XDG_CACHE_HOME"] = directory  # where jobs' identities are remembered on Linux
        start, busy = time.perf_counter(), time.process_time()
        for path in outputs.glob("*/*/result.json"):
            json.loads(path.read_text())
        plain = time.perf_counter() - start, time.process_time() - busy

        def no_index() -> tuple[float, float]:
            (outputs / ".index.sqlite").unlink()
            return command_seconds(outputs, "table")

        looks = {
            "reading every result.json, nothing else": [plain],
            "robustrun table, no index, no identities yet": [command_seconds(outputs, "table")],
            "robustrun table, no index": [no_index() for _ in range(arguments.rounds)],
            "robustrun table, again": [command_seconds(outputs, "table") for _ in range(arguments.rounds)],
            "robustrun table fast_at.cifar10": [
                command_seconds(outputs, "table", "fast_at.cifar10") for _ in range(arguments.rounds)
            ],
            "robustrun table, nothing run": [command_seconds(Path(directory) / "nowhere", "table")],
        }
        print(f"{'over ' + str(arguments.runs) + ' runs':<44} seconds")
        for name, times in looks.items():
            wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name:<44} {wall:7.2f} ({processor:.2f})")
        for name in list(looks)[1:-1]:
            seconds = [time[clock_name() == "processor"] for time in looks[name]]
            claim(f"{name}, {arguments.runs:,} runs", seconds, at_most=3, unit="s")


if __name__ == "__main__":
    main()
