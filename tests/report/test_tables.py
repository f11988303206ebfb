"""Table files: what is read, and what is refused in one sentence."""

import pytest

from robustrun.errors import ConfigError
from robustrun.report import tables
from robustrun.report.tables import Column

GOOD = """
paper: toy
tables:
  one:
    caption: A table
    source: Table 1
    columns:
      accuracy: {heading: clean, unit: "%", better: higher, tolerance: 1.0}
      timings.train: {heading: train, unit: min, better: lower}
    rows:
      a: {label: a, overrides: ["+exp=x"], seeds: [0, 1], paper: {accuracy: [86.2, 0.7], timings.train: "?"}}
      b: {label: b, overrides: ["+exp=y"], paper: {accuracy: 50}}
"""


@pytest.fixture
def write(tmp_path):
    def write_it(text, paper="toy"):
        path = tmp_path / paper / "tables.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_it


def test_a_good_file(write):
    table = tables.read(write(GOOD)).tables["one"]
    assert table.rows["a"].paper == {"accuracy": (86.2, 0.7), "timings.train": (None, None)}
    assert table.rows["b"].paper["accuracy"] == (50, None)
    assert table.rows["a"].exp == "x"
    assert table.rows["b"].seeds == (0,)


def test_units():
    assert Column(heading="a", unit="%").shown(0.5) == 50
    assert Column(heading="a", unit="min").shown(90) == 1.5
    assert Column(heading="a", unit="h").shown(5400) == 1.5
    assert Column(heading="a").shown(0.5) == 0.5


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("{accuracy: 50}", "{acuracy: 50}", "'acuracy', which is no column; did you mean 'accuracy'?"),
        ("{accuracy: 50}", "{accuracy: fifty}", "tables.one.rows.b.paper.accuracy"),
        ("tolerance: 1.0", "tolerance: -1", "tables.one.columns.accuracy.tolerance: input should be greater than 0"),
        ("better: higher", "better: up", "input should be 'higher' or 'lower'"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "rows.a.seeds has a seed twice"),
        ("seeds: [0, 1]", "seeds: []", "tables.one.rows.a.seeds"),
        ('["+exp=y"]', '["+exp=y", "seed=3"]', "a row's seeds belong in seeds: [...]"),
        ('["+exp=y"]', "[]", "tables.one.rows.b.overrides"),
        ("label: b,", "label: b, lable: c,", "tables.one.rows.b.lable: extra inputs are not permitted"),
        ("      b: {", "      a: {", "'a' is given twice"),
        ("source: Table 1", "source: Table 1\n    figure: {xlabel: x}", "rows.a has no x, but the table is a figure"),
        ("caption: A table", "caption: [A", "tables.yaml, line"),
        ("paper: toy", "", "paper: field required"),
    ],
)
def test_a_mistake_is_one_sentence(old, new, sentence, write):
    assert old in GOOD
    with pytest.raises(ConfigError, match=r"tables\.yaml") as caught:
        tables.read(write(GOOD.replace(old, new, 1)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_by_name(write, tmp_path):
    write(GOOD)
    write(GOOD.replace("toy", "other"), "other")
    assert list(tables.load(directory=tmp_path)) == ["other.one", "toy.one"]
    assert list(tables.load("toy", tmp_path)) == ["toy.one"]
    assert list(tables.load("toy.one", tmp_path)) == ["toy.one"]
    with pytest.raises(ConfigError, match=r"no table 'toy\.oen'; did you mean 'toy\.one'"):
        tables.load("toy.oen", tmp_path)
    with pytest.raises(ConfigError, match=r"no tables of 'tyo'; did you mean 'toy'"):
        tables.load("tyo", tmp_path)


def test_the_shipped_files_are_of_the_form():
    from robustrun.paths import experiments_dir

    for path in experiments_dir().glob("*/tables.yaml"):
        assert tables.read(path).paper == path.parent.name
    assert "fast_at.cifar10" in tables.load()
