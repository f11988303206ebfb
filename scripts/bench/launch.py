"""What starting costs: the command line's answers, a job's process, and a further row of a multirun.

python scripts/bench/launch.py --rows 6

The job trains nothing (an untrained network on scikit-learn's digits), so that all of its time is the runner's. A
row's overhead is the slope of the time over the number of rows, less what the job itself took (`timings.total`).
Answers are printed in seconds of the wall, and of the processor in brackets.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from _measure import claim, clock_name, command_seconds

JOB = ("task=digits", "model=mlp_classifier", "trainer=none", "certifier=accuracy")


def sweep(rows: int) -> tuple[float, float]:
    """Wall time of a multirun of so many rows, and what its jobs took themselves."""
    with tempfile.TemporaryDirectory() as directory:
        wall, _ = command_seconds(Path(directory), "-m", *JOB, f"seed=range({rows})")
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
        times = list(zip(*(command_seconds(nowhere, *command) for _ in range(arguments.rounds)), strict=True))
        wall, processor = map(statistics.median, times)
        print(f"{name:<40} {wall:6.2f} s ({processor:.2f})")
        claim(f"answer to {name}", times[clock_name() == "processor"], at_most=1, unit="s")
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
    claim("a further row of a multirun, beyond its job", slopes, at_most=2, unit="s", clock="wall")


if __name__ == "__main__":
    main()
