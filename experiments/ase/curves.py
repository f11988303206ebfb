#!/usr/bin/env python3
"""The paper's figure from finished runs: cumulative curves of all agents with bands over their trials.

python experiments/ase/curves.py outputs/ase_grid/* -o grid.png
python experiments/ase/curves.py outputs/ase_grid/* --curve unsafe -o unsafe.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from omegaconf import OmegaConf


def label(config) -> str:
    """What a job's agent is called in the paper."""
    trainer = config.trainer
    kind = {"ase": "ASE", "mbie": "MBIE", "rmax": "R-MAX", "epsilon_greedy": "eps-greedy"}[trainer.name]
    prefix = "Safe " if trainer.get("safe") else "Undirected " if trainer.get("directed") is False else ""
    marks = ", pooled" if config.model.analogy == "pool" else ""
    return prefix + kind + marks + (", no analogies" if config.task.get("analogy_radius") == 0 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--curve", default="suboptimal", choices=["suboptimal", "unsafe", "safe_pairs"])
    parser.add_argument("-o", "--output", type=Path, default=Path("curves.png"))
    options = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    for run in sorted(options.runs):
        data = run / "figures" / f"{options.curve}.csv"
        if not (run / "result.json").is_file() or not data.is_file():
            continue
        with data.open() as file:
            rows = [[float(row[key]) for key in ("x", "y", "low", "high")] for row in csv.DictReader(file)]
        x, mean, low, high = zip(*rows, strict=True)
        (line,) = axes.plot(x, mean, label=label(OmegaConf.load(run / "config.yaml")))
        axes.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    names = {"suboptimal": "sub-optimal decisions", "unsafe": "unsafe actions", "safe_pairs": "safe pairs"}
    axes.set(xlabel="decisions / 1000", ylabel=f"{names[options.curve]} so far")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(options.output)
    print(options.output)


if __name__ == "__main__":
    main()
