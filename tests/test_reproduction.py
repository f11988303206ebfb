"""Which finished run is which row: worked out once, and again only when a config that matters has changed."""

import pytest

from robustrun import identities
from robustrun.compose import Composer
from robustrun.report.index import Index
from robustrun.report.tables import Row, Table
from robustrun.reproduction import Reproduction

ROW = Row(label="mine", overrides=["task=digits", "model=mlp_classifier", "trainer=mine", "certifier=accuracy"])


@pytest.fixture
def config_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "conf" / "trainer").mkdir(parents=True)
    (tmp_path / "conf" / "trainer" / "mine.yaml").write_text("# Mine\ndefaults: [standard]\nepochs: 3\n")
    (tmp_path / "conf" / "trainer" / "other.yaml").write_text("# Another\ndefaults: [standard]\nepochs: 4\n")
    return tmp_path / "conf"


def identity(config_dir, monkeypatch) -> tuple[str, bool]:
    """The row's identity, and whether it had to be composed."""
    composed = []
    real = identities.identify
    monkeypatch.setattr(identities, "identify", lambda *of: composed.append(of) or real(*of))
    with Index(config_dir.parent / "outputs") as index:
        sha = Reproduction(index, config_dir=str(config_dir))._identity(ROW, 0)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(config_dir.parent / "cache"))
    return sha, bool(composed)


def test_only_a_config_that_went_into_a_row_makes_it_be_composed_again(config_dir, monkeypatch):
    first, composed = identity(config_dir, monkeypatch)
    assert composed
    assert identity(config_dir, monkeypatch) == (first, False)
    (config_dir / "trainer" / "other.yaml").write_text("# Another\ndefaults: [standard]\nepochs: 5\n")
    assert identity(config_dir, monkeypatch) == (first, False)
    (config_dir / "trainer" / "mine.yaml").write_text("# Mine\ndefaults: [standard]\nepochs: 6\n")
    second, composed = identity(config_dir, monkeypatch)
    assert composed
    assert second != first


def test_a_new_file_that_hides_a_shipped_one_counts(config_dir, monkeypatch):
    first, _ = identity(config_dir, monkeypatch)
    (config_dir / "model").mkdir()
    (config_dir / "model" / "mlp_classifier.yaml").write_text("# Mine\nname: mlp_classifier\nhidden: [7]\n")
    second, composed = identity(config_dir, monkeypatch)
    assert composed
    assert second != first


def test_an_identity_that_cannot_be_kept_is_worked_out_once(config_dir, monkeypatch):
    composed, real = [], identities.identify
    monkeypatch.setattr(identities, "identify", lambda *of: composed.append(of) or real(*of))
    monkeypatch.setattr(Index, "remember", lambda *_: None)  # as where the cache cannot be written
    monkeypatch.setattr(Index, "has", lambda *_: True)
    columns = {"accuracy": {"heading": "accuracy", "better": "higher"}}
    table = Table.model_validate(
        {"caption": "c", "source": "s", "columns": columns, "rows": {"mine": ROW.model_dump()}}
    )
    with Index(config_dir.parent / "outputs") as index:
        (view,) = Reproduction(index, config_dir=str(config_dir)).views({"toy.one": table})
    assert (view.rows[0].status, view.rows[0].error) == ("missing", "")
    assert len(composed) == 1


def test_many_are_worked_out_by_several_processes_in_their_order(config_dir, monkeypatch):
    monkeypatch.setattr(identities, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    many = [[*ROW.overrides, f"trainer.epochs={n}"] for n in (1, 2, 3)] + [["+exp=none"]]
    *found, wrong = identities.identify_all(many, str(config_dir))
    composer = Composer.create(config_dir)
    assert found == [identities.identify(composer, overrides) for overrides in many[:3]]
    assert len({identity.sha256 for identity in found}) == 3
    assert wrong is None
    assert "trainer/mine" in found[0].configs
