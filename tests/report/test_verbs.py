"""`robustrun table`, `report` and `merge` as typed: on real jobs, small ones."""

import json
import re
import shutil
from pathlib import Path

import pytest

from robustrun import cli
from robustrun.paths import experiments_dir
from robustrun.report import tables
from robustrun.report.results import Result
from robustrun.reproduction import Reproduction, open_index

SMALL = ("task=digits", "model=mnist_cnn", "trainer=standard", "certifier=accuracy", "certifier.batch_size=60")
TABLE = """
paper: toy
tables:
  one:
    caption: Digits
    source: Table 1
    columns: {accuracy: {heading: clean, unit: "%", better: higher, tolerance: 100}}
    rows:
      seeds: {label: two seeds, overrides: [SMALL, trainer.epochs=2], seeds: [0, 1], paper: {accuracy: 90}}
      other: {label: another rate, overrides: [SMALL, trainer.epochs=2, trainer.optimizer.lr=0.05]}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTRUN_OUTPUTS", raising=False)
    monkeypatch.setattr(tables, "experiments_dir", lambda: tmp_path / "experiments")
    return tmp_path


@pytest.fixture
def robust(capsys):
    def type_it(*arguments):
        code = cli.run(list(arguments))
        output = capsys.readouterr()
        return code, output.out, output.err

    return type_it


@pytest.fixture
def table(here):
    file = here / "experiments" / "toy" / "tables.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TABLE.replace("SMALL", ", ".join(SMALL)))
    return file


def runs():
    return sorted(Path("outputs").glob("*/*/result.json"))


def test_a_table_from_nothing_to_done(robust, table):
    code, out, _ = robust("table")
    assert code == 0
    assert "0 of 2" in out
    assert not Path("outputs").exists(), "looking makes nothing"
    code, out, err = robust("table", "toy.one", "--run", "seed=0")
    assert code == 0, err
    assert len(runs()) == 2
    assert "REDUCED: seed=0" in out
    code, out, _ = robust("table", "toy.one")
    assert "1 of 2 seeds" in out
    code, out, err = robust("table", "toy.one", "--run", "--format", "json")
    assert code == 0, err
    assert "launching 1 missing" in err
    rows = json.loads(out)[0]["rows"]
    assert [row["status"] for row in rows] == ["done", "done"]
    accuracies = [
        r.metrics["accuracy"] for r in map(Result.read, runs()) if "trainer.optimizer.lr=0.05" not in r.overrides
    ]
    assert rows[0]["cells"]["accuracy"]["mean"] == pytest.approx(50 * sum(accuracies))
    assert rows[0]["cells"]["accuracy"]["verdict"] == "within"
    code, out, err = robust("table", "toy.one", "--run")
    assert (code, "nothing is missing" in err, len(runs())) == (0, True, 3)


def test_a_reduced_row_never_shows_as_the_papers(robust, table):
    assert robust("table", "toy.one", "--run", "trainer.epochs=1", "seed=0")[0] == 0
    _, out, err = robust("table", "toy.one", "--run", "trainer.epochs=1", "seed=0")
    assert "nothing is missing" in err
    assert out.count("done (reduced)") == 2
    assert robust("table", "toy.one")[1].count("missing") == 2
    assert "done (reduced)" in robust("table", "toy.one", "--with", "trainer.epochs=1", "seed=0")[1]


def test_what_is_shown_as_missing_is_what_is_run(robust, table):
    """Also where another experiment has run the very same job."""
    assert robust("table", "toy.one", "--run", "seed=0")[0] == 0
    for path in runs():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"exp": "elsewhere"}))
    runs()[0].parent.parent.rename(Path("outputs") / "elsewhere")
    assert robust("table", "toy.one", "--with", "seed=0")[1].count("missing") == 2
    code, out, err = robust("table", "toy.one", "--run", "seed=0")
    assert (code, "launching 2 missing" in err, out.count("done (reduced)")) == (0, True, 2)


def test_overrides_of_where_it_runs_do_not_reduce(robust, table):
    code, out, _ = robust("table", "toy.one", "--run", "runtime.threads=1", "hydra/launcher=basic")
    assert code == 0
    assert "REDUCED" not in out
    assert robust("table", "toy.one")[1].count("done") == 2


@pytest.mark.parametrize(
    ("old", "new", "arguments", "sentence"),
    [
        ("task=digits", "+exp=no_such", ["toy.one"], "row 'seeds' and 1 more: no exp is called 'no_such'"),
        ("trainer.epochs=2", "trainer.epocs=2", ["toy.one", "--run"], "has no 'epocs'; did you mean 'epochs'?"),
        ("toy", "toy", ["toy.two"], "there is no table 'toy.two'"),
        ("toy", "toy", ["toy.one", "--run", "certifier.exmples=3"], "has no 'exmples'; did you mean 'examples'?"),
        ("toy", "toy", ["toy.one", "--run", "seed=0,1"], "a table takes one seed for all its rows"),
        ("toy", "toy", ["--run"], "table --run: which?"),
        ("toy", "toy", ["toy.one", "--detach"], "table --detach goes with --run"),
        ("toy", "toy", ["toy.one", "--run", "--detach"], "--detach leaves jobs to a cluster"),
        ("toy", "toy", ["toy.one", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_a_wrong_request(old, new, arguments, sentence, robust, table):
    table.write_text(table.read_text().replace(old, new))
    code, _, err = robust("table", *arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not runs()


def test_an_unknown_metric_and_a_damaged_result(robust, table):
    assert robust("table", "toy.one", "--run", "seed=0")[0] == 0
    table.write_text(
        table.read_text()
        .replace("columns: {accuracy:", "columns: {acuracy:")
        .replace("paper: {accuracy: 90}", "paper: {}")
    )
    code, _, err = robust("table", "toy.one")
    assert code == 2
    assert "reports no 'acuracy'; did you mean 'accuracy'?" in err
    table.write_text(TABLE.replace("SMALL", ", ".join(SMALL)))
    for path in runs():
        path.write_text(path.read_text()[:100])
    code, out, err = robust("table", "toy.one")
    assert code == 3
    assert out.count("missing") == 2
    assert err.count("is not readable") == 2


def shape(row):
    """What a row composes from: its groups' options and its keys, whatever their values."""
    return tuple(o if "." not in o.partition("=")[0] else o.partition("=")[0] for o in row.overrides)


@pytest.mark.slow
@pytest.mark.parametrize("paper", sorted(path.parent.name for path in experiments_dir().glob("*/tables.yaml")))
def test_every_shipped_row_composes(paper, monkeypatch):
    """Of all rows of the shipped tables that differ in more than numbers, each is a job."""
    monkeypatch.undo()
    rows = {}
    for table in tables.load(paper).values():
        rows |= {shape(row): row.model_copy(update={"seeds": (0,)}) for row in table.rows.values()}
    everything = table.model_copy(update={"rows": {str(i): row for i, row in enumerate(rows.values())}})
    with open_index(Path("nowhere")) as index:
        for row, job in Reproduction(index).jobs(everything):
            assert not isinstance(job, Exception), f"{everything.rows[row].overrides}: {job}"


# ------------------------------------------------------------------------------------------------ shards


def test_shards_are_one_job_in_parts(robust):
    assert robust(*SMALL, "trainer.epochs=1")[0] == 0
    (whole,) = runs()
    expected = Result.read(whole)
    shutil.move("outputs", "elsewhere")
    code, _, err = robust("-m", *SMALL, "trainer.epochs=1", "certifier.shard=1/3,2/3,3/3")
    assert code == 0, err
    parts = [path.parent for path in runs()]
    assert [part.name for part in parts] == [f"{whole.parent.name}-{i}of3" for i in (1, 2, 3)]
    assert len({Result.read(part / "result.json").config_sha256 for part in parts}) == 1
    code, _, err = robust("merge", *map(str, parts))
    assert code == 0, err
    merged = Result.read(Path("outputs/adhoc") / whole.parent.name / "result.json")
    assert merged.metrics == expected.metrics
    assert merged.config_sha256 == expected.config_sha256
    assert merged.counts == expected.counts
    assert merged.shard is None
    times = [Result.read(part / "result.json").timings["certify"] for part in parts]
    assert merged.timings["certify"] == pytest.approx(sum(times), abs=0.002)
    examples = [
        (d / "examples.csv").read_text()
        for d in (Path("elsewhere/adhoc") / whole.parent.name, Path("outputs/adhoc") / whole.parent.name)
    ]
    assert examples[0] == examples[1]
    assert "complete already" in robust(*SMALL, "trainer.epochs=1")[1]


def test_shards_that_do_not_belong_together(robust):
    robust("-m", *SMALL, "trainer.epochs=1", "certifier.shard=1/2,2/2", "seed=0,1")
    robust(*SMALL, "trainer.epochs=1", "certifier.shard=2/3")
    by_name = {(r.seed, r.shard): str(p.parent) for p in runs() for r in [Result.read(p)]}
    first, second, foreign = by_name[0, "1/2"], by_name[0, "2/2"], by_name[1, "2/2"]

    def refused(*directories, code=2):
        found, _, err = robust("merge", *directories)
        assert found == code
        assert err.count("\n") == 1
        return err

    assert "is a part of another job" in refused(first, foreign)
    assert "were cut differently" in refused(first, by_name[0, "2/3"])
    assert "shards are missing: 2/2" in refused(first)
    assert "shard 1/2 is given twice" in refused(first, first, second)
    assert "there is no finished run here" in refused(first, "nowhere", code=3)
    records = next(Path(second).glob("records/*.jsonl"))
    good = records.read_bytes()
    records.write_bytes(next(Path(first).glob("records/*.jsonl")).read_bytes())
    assert "overlaps with another shard" in refused(first, second)
    records.write_bytes(b'{"index": 3}\n')
    assert "is damaged" in refused(first, second, code=3)
    records.write_bytes(good)
    overrides = Path(first, "overrides.yaml")
    overrides.write_text(re.sub("epochs=1", "epochs=2", overrides.read_text()))
    assert "has changed since" in refused(first, second)
    result = Path(first, "result.json")
    result.write_text(result.read_text().replace('"shard": "1/2"', '"shard": null'))
    assert "is not a shard" in refused(first, second)


def test_a_shard_that_makes_no_sense(robust):
    code, _, err = robust(*SMALL, "certifier.shard=3/2")
    assert code == 2
    assert "shard=3/2 is not understood" in err
    assert not Path("outputs").exists()
