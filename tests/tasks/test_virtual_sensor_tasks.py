"""The injector's physics, and tables of readings read with suspicion."""

import csv

import numpy as np
import pytest
import torch

from robustrun.errors import ConfigError, DataError
from robustrun.tasks import injector_physics as physics
from robustrun.tasks.sensor_table import Column, Target
from robustrun.tasks.sensors import Injector, SensorCSV, SensorPublic


def _shots(*values: float) -> physics.Shots:
    return physics.Shots(*(np.array([float(v)]) for v in values))


def test_reference_shots():
    one = physics.simulate(_shots(1000, 0.8, 40, 2000, 60, 1, 1, 0))
    assert one.quantity[0] == pytest.approx(34.09738, abs=1e-4)
    expected = [-31.95, -111.204, -3.671, 53.751, -39.738, 57.228, 130.55, -45.129]
    expected += [-101.465, 51.771, 69.878, -57.806, -22.837, 51.912, -18.752, -42.779]
    assert one.trace[0] == pytest.approx(np.array(expected), abs=1e-3)
    two = physics.simulate(_shots(400, 0.3, 80, 1000, 40, 1.05, 0.9, 0.01))
    assert two.quantity[0] == pytest.approx(5.27742, abs=1e-4)
    assert two.trace[0, 1:4] == pytest.approx(np.array([-47.998, -8.529, 71.722]), abs=1e-3)


def test_time_step_is_fine_enough():
    shots = physics.sample(100, 5)
    coarse, fine = (physics.simulate(shots, dt=dt).quantity for dt in (5e-6, 1.25e-6))
    assert np.abs(fine / coarse - 1).max() < 1e-3


def test_quantity_rises_and_falls_with_its_causes():
    shots = physics.sample(1000, 4)
    base = physics.simulate(shots).quantity
    for name, sign in (("rail", 1), ("energise", 1), ("area", 1), ("cylinder", -1)):
        moved = physics.simulate(shots._replace(**{name: 1.01 * getattr(shots, name)})).quantity
        assert (sign * (moved - base) > 0).all(), name
    # the speed acts through the cylinder pressure alone
    assert np.array_equal(physics.simulate(shots._replace(speed=2 * shots.speed)).quantity, base)


def test_without_a_line_flow_is_bernoullis():
    """A needle held wide open behind no line: the quantity is area * sqrt(2 dp / rho) * time, the trace is flat."""
    shots = _shots(1000, 0.8, 40, 2000, 60, 1, 1, 0)
    found = physics.simulate(shots, impedance=0.0, reflection=0.0)
    assert np.abs(found.trace).max() < 1e-9
    needle = physics._Needle.of(shots)
    t = np.arange(720) * 5e-6
    lift = np.array([needle.lift(s)[0] for s in t])
    seat, holes = 0.65 * np.pi * 1.8e-3 * 0.5 * lift, 0.86 * 8 * np.pi / 4 * 0.125e-3**2
    rho = 830 * (1 + 10 * 1e8 / 1.4e9) ** 0.1
    flow = seat * holes / np.hypot(seat, holes) * np.sqrt(2 * (1e8 - 6e6) / rho)
    assert found.quantity[0] == pytest.approx(flow.sum() * 5e-6 * 1e9, rel=1e-9)
    assert lift.max() == pytest.approx(0.25e-3)
    assert lift[-1] == 0


def test_percentiles_and_rows_kept(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTRUN_DATA", str(tmp_path))
    task = Injector(train=2000, valid=100, test=1500)
    task.load(run)
    assert task.size("test") == 1459
    batch = next(task.loader("test", 2000, run).epoch(0))
    assert batch.inputs.shape == (1459, 21)
    assert batch.targets.min() >= 0.05
    assert batch.targets.max() <= 1
    assert task.tolerance(batch.inputs).shape == (21,)
    again = Injector(train=2000, valid=100, test=1500)
    again.load(run)  # from the cache
    assert torch.equal(next(again.loader("test", 2000, run).epoch(0)).inputs, batch.inputs)
    assert len(list((tmp_path / "injector").glob("*.npz"))) == 3


COLUMNS = [
    Column(column="a", unit="bar", min=0, max=100, tolerance=0.02, tolerance_absolute=1.0),
    Column(column="b", unit="C", min=-50, max=50, tolerance_relative=0.1),
]
TARGET = Target(column="q", unit="mm3", max=10.0)


def _file(tmp_path, rows=None, header=("a", "b", "q", "part", "injector"), text=None):
    path = tmp_path / "readings.csv"
    if text is not None:
        path.write_text(text)
        return str(path)
    if rows is None:
        rng = np.random.default_rng(0)
        rows = [
            (rng.uniform(0, 100), rng.uniform(-50, 50), rng.uniform(1, 10), ("train", "valid", "test")[i % 3], i % 10)
            for i in range(60)
        ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def _load(run, path, **changes):
    task = SensorCSV(**{"path": path, "target": TARGET, "columns": COLUMNS, **changes})
    task.load(run)
    return task


def _all(task, run):
    return {s: next(task.loader(s, 10**6, run).epoch(0)) for s in ("train", "valid", "test")}


def test_readings_are_scaled_and_split_by_column(run, tmp_path):
    task = _load(run, _file(tmp_path), split_column="part")
    parts = _all(task, run)
    assert [len(p.inputs) for p in parts.values()] == [20, 20, 20]
    for p in parts.values():
        assert 0 <= p.inputs.min().item() <= p.inputs.max().item() <= 1
        assert p.targets.max() <= 1
    # 2 % and 1 bar of 100; a tenth of the reading in C, whose zero is in the middle of the range
    x = torch.tensor([[0.3, 0.5], [0.3, 1.0], [0.3, 0.0]])
    expected = torch.tensor([[0.03, 0.0], [0.03, 0.05], [0.03, 0.05]])
    assert torch.allclose(task.tolerance(x), expected)


def test_groups_never_fall_into_two_splits(run, tmp_path):
    rng = np.random.default_rng(1)
    rows = [(10.0 * (i % 10), rng.uniform(-50, 50), rng.uniform(1, 10), "", i % 10) for i in range(60)]
    parts = _all(_load(run, _file(tmp_path, rows), group="injector", fractions=(0.6, 0.2, 0.2)), run)
    groups = [set(p.inputs[:, 0].tolist()) for p in parts.values()]
    assert [len(g) for g in groups] == [6, 2, 2]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]


def test_simulator_through_a_file_is_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTRUN_DATA", str(tmp_path / "data"))
    direct = Injector(train=300, valid=100, test=100)
    direct.load(run)
    parts = _all(direct, run)
    rows = [
        (*(repr(float(v)) for v in x.double()), repr(float(y)), split)
        for split, p in parts.items()
        for x, y in zip(p.inputs, p.targets[:, 0], strict=True)
    ]
    names = [f"s{j}" for j in range(21)]
    columns = [
        Column(column=n, min=0, max=1, tolerance=float(t)) for n, t in zip(names, direct.fixed_tolerance(), strict=True)
    ]
    path = _file(tmp_path, rows, (*names, "q", "part"))
    task = _load(run, path, columns=columns, target=Target(column="q", max=1.0), split_column="part")
    for split, p in _all(task, run).items():
        assert torch.equal(p.inputs, parts[split].inputs)
        assert torch.equal(p.targets, parts[split].targets)
    assert torch.equal(task.tolerance(p.inputs), direct.tolerance(p.inputs))


def test_missing_values_duplicates_and_small_quantities_are_dropped_and_said(run, tmp_path, caplog):
    rows = [(i, i - 30, 1 + i / 10, "", "") for i in range(60)]
    rows += [("", 1, 2, "", ""), (1, "nan", 2, "", ""), rows[0], (3, 4, 0.1, "", "")]
    with caplog.at_level("INFO"):
        task = _load(run, _file(tmp_path, rows))
    assert sum(task.size(s) for s in ("train", "valid", "test")) == 60
    text = (run.dir / "log.txt").read_text()
    for sentence in (
        "2 of 64 rows dropped: a value is missing",
        "1 of 62 rows",
        "1 of 61 rows dropped: the quantity is",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"columns": []}, ConfigError, "columns is empty"),
        ({"columns": [COLUMNS[0]] * 2}, ConfigError, "'a' twice"),
        ({"target": Target(column="a", max=1.0)}, ConfigError, "among the sensors"),
        ({"fractions": (0.5, 0.1, 0.1)}, ConfigError, "add up to 1"),
        ({"target": Target(column="mass", max=1.0)}, DataError, "no column 'mass'; it has a, b, q"),
        ({"target": Target(column="q", max=0.01)}, DataError, "another unit"),
        ({"target": Target(column="q", max=1e4)}, DataError, "another unit"),
        (
            {"columns": [COLUMNS[0], Column(column="b", min=200, max=400, tolerance=0.1)]},
            DataError,
            "outside its range",
        ),
        ({"split_column": "injector"}, DataError, "not one of train, valid, test"),
        ({"split_column": "part", "group": "injector"}, DataError, "in two splits"),
        ({"path": "nowhere.csv"}, DataError, "no file nowhere.csv"),
    ],
)
def test_wrong_requests_are_refused(run, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        _load(run, **{"path": _file(tmp_path), **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a;b;q\n1;2;3\n", "something else than commas"),
        ("a,b,q,a\n1,2,3,4\n", "two columns named 'a'"),
        ("a,b,q\n1,2\n", "line 2: 2 cells under 3"),
        ("a,b,q\n1,2,3\n1,x,3\n", "line 3, column 'b': 'x' is not a number"),
        ('a,b,q\n"1,5",2,3\n', "decimal commas"),
        ("a,b,q\n1,inf,3\n", "not a finite number"),
        ("a,b,q\n", "no rows"),
        ("a,b,q\n,2,3\n", "a value is missing"),
        ("a,b,q\n" + "".join(f"5,{i},{3 + i / 10}\n" for i in range(20)), "5 in every row"),
    ],
)
def test_malformed_files_are_refused(run, tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        _load(run, _file(tmp_path, text=text))


def test_sensors_need_ranges_and_tolerances():
    with pytest.raises(ValueError, match="not below max"):
        Column(column="a", min=1, max=1, tolerance=0.1)
    with pytest.raises(ValueError, match="no tolerance"):
        Column(column="a", min=0, max=1)


def test_public_set(run):
    task = SensorPublic(tolerance=0.03)
    task.load(run)
    assert [task.size(s) for s in ("train", "valid", "test")] == [265, 89, 88]
    batch = next(task.loader("train", 265, run).epoch(0))
    assert batch.inputs.min() >= 0
    assert batch.inputs.max() <= 1
    assert torch.equal(task.tolerance(batch.inputs), torch.full((10,), 0.03))
