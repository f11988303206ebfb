"""What starting costs: the command line's answers, a job's process, and a further row of a multirun.

python scripts/bench/launch.py --rows 6

The job trains nothing (an untrained network on scikit-learn's digits), so that all of its time is the runner's. A
row's overhead is the slope of the time over the number of rows, less what the job itself took (`timings.total`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = ("task=digits", "model=mlp_classifier", "trainer=none", "certifier=accuracy")


def seconds(outputs: Path, *arguments: str) -> float:
    """Wall time of `robustrun ARGUMENTS`, the start of python included."""
    environment = {**os.environ, "ROBUSTRUN_OUTPUTS": str(outputs)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "robustrun.cli", *arguments]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def sweep(rows: int) -> tuple[float, float]:
    """Wall time of a multirun of so many rows, and what its jobs took themselves."""
    with tempfile.TemporaryDirectory() as directory:
        wall = seconds(Path(directory), "-m", *JOB, f"seed=range({rows})")
        results = [json.loads(path.read_text()) for path in Path(directory).rglob("result.json")]
        assert len(results) == rows
        return wall, sum(result["timings"]["total"] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6, help="rows of the longer multirun")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    nowhere = Path(tempfile.gettempdir(), "nowhere")
    answers = {
        "robustrun list": ("list",),
        "an unknown experiment": ("+exp=fast_at_cifa",),
        "an unknown key": ("+exp=fast_at_cifar", "trainer.epohs=1"),
    }
    for name, command in answers.items():
        print(f"{name:<40} {statistics.median(seconds(nowhere, *command) for _ in range(arguments.rounds)):6.2f} s")
    one, many = [], []
    for _ in range(arguments.rounds):
        one.append(sweep(1))
        many.append(sweep(arguments.rows))
    print(f"{'one job, its own time left out':<40} {statistics.median(wall - own for wall, own in one):6.2f} s")
    slopes = [
        ((wall - own) - (first - first_own)) / (arguments.rows - 1)
        for (first, first_own), (wall, own) in zip(one, many, strict=True)
    ]
    print(f"{'a further row of a multirun':<40} {statistics.median(slopes):6.2f} s")


if __name__ == "__main__":
    main()
