"""Paired comparison of two kinds of runs over seeds and tasks: what a table of means cannot say.

Runs are paired when their overrides agree but for the one that tells the kinds apart. Example, after
`robustrun -m +exp=ap_perf_table trainer=ap_perf_quick,cross_entropy_quick seed=0,1,2,3,4 metric.beta=2`:

    scripts/compare.py outputs/ap_perf_table trainer=ap_perf_quick trainer=cross_entropy_quick
    scripts/compare.py outputs/ap_perf_table trainer=ap_perf_quick trainer=cross_entropy_quick --against tuned

For every task: the mean difference with Student's interval over the pairs, how often the first kind won, and the
exact sign test.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats


def results(folders: list[Path]) -> list[dict]:
    """All finished runs below the folders."""
    files = sorted({file for folder in folders for file in folder.rglob("result.json")})
    return [json.loads(file.read_text()) for file in files]


def pairs(
    found: list[dict], first: str, second: str, metric: str, against: str
) -> dict[str, list[tuple[float, float]]]:
    """(first's metric, second's) of the runs that agree in all else, by task."""
    values: dict[str, dict[tuple, tuple[str, float]]] = {first: {}, second: {}}
    for result in found:
        overrides = set(result["overrides"])
        for kind, name in ((first, metric), (second, against)):
            value = result["metrics"].get(name)
            if kind in overrides and value is not None:
                rest = frozenset(o for o in overrides - {kind} if not o.startswith(("seed=", "row=")))
                task = next((o.removeprefix("task=") for o in overrides if o.startswith("task=")), result["exp"])
                values[kind][rest, result["seed"]] = task, value
    grouped = defaultdict(list)
    for key, (task, value) in values[first].items():
        if key in values[second]:
            grouped[task].append((value, values[second][key][1]))
    return grouped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run directories, or folders of them")
    parser.add_argument("first", help="the override that marks the first kind, e.g. trainer=ap_perf_quick")
    parser.add_argument("second", help="and the second")
    parser.add_argument("--metric", default="metric", help="of result.json")
    parser.add_argument("--against", help="metric of the second kind, if another one")
    args = parser.parse_args()
    grouped = pairs(results(args.folders), args.first, args.second, args.metric, args.against or args.metric)
    if not grouped:
        print(f"no two finished runs differ just in {args.first} and {args.second}", file=sys.stderr)
        return 1
    print(
        f"{'task':<20} {'pairs':>5} {'first':>7} {'second':>7} {'difference':>10} "
        f"{'95 % interval':>18} {'won':>5} {'p':>6}"
    )
    for task, values in sorted(grouped.items()):
        first, second = np.array(values).T
        difference, n, won = first - second, len(values), int((first > second).sum())
        decided = int((first != second).sum())
        p = stats.binomtest(won, decided).pvalue if decided else 1.0
        half = stats.t.ppf(0.975, n - 1) * stats.sem(difference) if n > 1 else float("nan")
        mean = difference.mean()
        interval = f"[{mean - half:+.4f}, {mean + half:+.4f}]" if n > 1 else "one pair"
        print(
            f"{task:<20} {n:>5} {first.mean():>7.4f} {second.mean():>7.4f} {mean:>+10.4f} {interval:>18} "
            f"{won:>2}/{n:<2} {p:>6.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
