"""A job of every kind, as small as it can be and still save in several places; and what such a job found."""

import json
from pathlib import Path

DIGITS = ("task=digits", "task.test_limit=60", "threat.epsilon=0.1")
ATTACK = ("certifier=pgd", "certifier.steps=2", "certifier.restarts=1", "certifier.batch_size=20")
CLASSIFIER = (
    "fast_at_cifar task=digits task.test_limit=30 model=mlp_classifier trainer=standard trainer.epochs=1 "
    "certifier=accuracy"
)
SMOOTHING = ("certifier=smoothing", "certifier.n0=5", "certifier.n=20", "certifier.batch_size=200")
JOBS = {
    "training": (*DIGITS, "model=mlp_classifier", "trainer=pgd", "trainer.epochs=4", "trainer.steps=2", *ATTACK),
    "certification": (
        *DIGITS, "model=mlp_classifier", "trainer=standard", "trainer.epochs=1", "certifier=autoattack",
        "certifier.examples=12", "certifier.batch_size=3", "certifier.steps=2", "certifier.queries=5"),
    "smoothing": (
        *DIGITS, "model=mlp_classifier", "trainer=gaussian_augmentation", "trainer.epochs=1", *SMOOTHING,
        "certifier.examples=30", "certifier.together=5"),
    "closed form": (
        "task=digits17", "task.limit=60", "task.test_limit=40", "model=linear", "trainer=least_squares",
        "certifier=label_flip", "certifier.partitions=0", "certifier.batch_size=10"),
    "MILP": (
        "task=injector", "task.train=100", "task.valid=20", "task.test=4", "model=mlp_regressor", "model.hidden=[3]",
        "trainer=regression", "trainer.epochs=3", "certifier=sensor_milp", "certifier.examples=4",
        "certifier.batch_size=1"),
    "API queries": (
        "task=digits", "task.test_limit=8", "model=queried", "model.denoiser.name=identity", "trainer=none",
        "noise.sigma=0.1", "model.query.url={url}", "model.query.limits.concurrency=1", *SMOOTHING,
        "certifier.examples=8", "certifier.together=2", "certifier.radii=[0.1]"),
    "environment": (
        "task=unsafe_grid_small", "task.steps=300", "model=tabular_agent", "trainer=ase", "trainer.trials=2",
        "certifier=safe_exploration", "certifier.frames=0"),
    "needs": (
        "task=digits", "task.test_limit=20", f"+needs.classifier='{CLASSIFIER}'", "model=denoised_small",
        "model.denoiser.width=2", "model.denoiser.depth=3", "trainer=denoiser", "trainer.epochs=1", *SMOOTHING,
        "certifier.examples=10", "certifier.together=5"),
    "sweep": (
        "-m", *DIGITS, "model=mlp_classifier", "trainer=standard", "trainer.epochs=1", *SMOOTHING,
        "certifier.examples=10", "certifier.together=5", "seed=0,1"),
    "table": ("table", "toy.one", "--run"),
}  # fmt: skip
SHORT = [word.replace("epochs=4", "epochs=1") for word in JOBS["training"]]
TABLE = f"""
paper: toy
tables:
  one:
    caption: a table
    source: nowhere
    columns: {{robust_accuracy: {{heading: acc, unit: "%", better: higher, tolerance: 1}}}}
    rows:
      long: {{label: long, overrides: {json.dumps([*SHORT, "trainer.steps=1"])}, paper: {{robust_accuracy: 50}}}}
      short: {{label: short, overrides: {json.dumps(SHORT)}, paper: {{robust_accuracy: [50, 1]}}}}
"""


def arguments(kind: str, url: str) -> list[str]:
    """The command line of a job of the kind; `url` is where the classifier answers that can only be asked."""
    return [word.replace("{url}", url) for word in JOBS[kind]]


def findings(outputs: Path) -> dict[str, object]:
    """What every job found, by its directory: metrics, records of examples, curves (but for times), and which files."""
    found: dict[str, object] = {}
    for path in sorted(outputs.rglob("result.json")):
        folder = path.parent
        curve = folder / "metrics.jsonl"
        lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
        curves = [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k} for line in lines]
        content = json.loads(path.read_text())
        metrics = {k: v for k, v in content["metrics"].items() if "seconds" not in k}
        tables = {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*.csv"))}
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.name.startswith("."))
        name = folder.relative_to(outputs).as_posix()
        found[name] = (content["config_sha256"], content["counts"], metrics, tables, curves, names)
    found["comparisons"] = sorted(p.name for p in outputs.rglob("comparisons/*/[!.]*"))
    return found
