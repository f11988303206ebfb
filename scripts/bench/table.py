"""`robustrun table` over many finished runs: the first look, which reads them all, and every later one.

python scripts/bench/table.py --runs 10000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


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


def look(outputs: Path, *arguments: str) -> float:
    """Seconds that `robustrun table` takes, the start of python included."""
    environment = {**os.environ, "ROBUSTRUN_OUTPUTS": str(outputs)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "robustrun.cli", "table", *arguments]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as directory:
        outputs = Path(directory) / "outputs"
        build(outputs, runs)
        start = time.perf_counter()
        for path in outputs.glob("*/*/result.json"):
            json.loads(path.read_text())
        plain = time.perf_counter() - start
        nothing = look(Path(directory) / "nowhere")
        first, second = look(outputs), look(outputs)
        one = look(outputs, "fast_at.cifar10")
        print(f"{'over ' + str(runs) + ' runs':<44} seconds")
        print(f"{'reading every result.json, nothing else':<44} {plain:7.2f}")
        print(f"{'robustrun table, nothing run':<44} {nothing:7.2f}")
        print(f"{'robustrun table, no index, no identities yet':<44} {first:7.2f}")
        print(f"{'robustrun table, again':<44} {second:7.2f}")
        print(f"{'robustrun table fast_at.cifar10':<44} {one:7.2f}")


if __name__ == "__main__":
    main()
