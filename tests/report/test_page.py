"""The report page in headless Chromium: no error, sorting and filtering work, nothing from the network, accessible."""

import html
import json
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robustrun.report import html as report
from robustrun.report.tables import Table
from robustrun.report.view import TableView, row_view
from tests.report.test_view import found

TABLE = Table.model_validate(
    {
        "caption": "Accuracy <by> step & size",
        "source": "Figure 1",
        "figure": {"xlabel": "alpha"},
        "columns": {"accuracy": {"heading": "clean", "unit": "%", "better": "higher", "tolerance": 1.0}},
        "rows": {
            f"r{i}": {"label": label, "overrides": ["+exp=x"], "x": i, "paper": {"accuracy": paper}}
            for i, (label, paper) in enumerate([("ten", 10), ("nine <b>", 9.5), ("hundred", 100), ("none", "?")])
        },
    }
)
ACCURACIES = [0.102, 0.09, 0.995, None]


@pytest.fixture
def page(tmp_path):
    """A page with a table that is a figure, and a run with curves, a figure and a picture."""
    runs = [found(a) if a is not None else None for a in ACCURACIES]
    rows = [
        row_view(name, row, TABLE.columns, [run] if run else [])
        for (name, row), run in zip(TABLE.rows.items(), runs, strict=True)
    ]
    directory = tmp_path / "outputs" / "x" / "abc"
    (directory / "figures").mkdir(parents=True)
    lines = [{"epoch": e, "step": e, "loss": 1 / (e + 1), "train_accuracy": e / 9, "note": "x"} for e in range(9)]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"torn')
    (directory / "config.yaml").write_text("seed: 0  # </pre><script>alert(1)</script>\n")
    (directory / "figures" / "certified.csv").write_text("series,x,y,low,high\ncohen,0,1\ncohen,1,0.5\n")
    (directory / "figures" / "picture.png").write_bytes(b"\x89PNG not really")
    content = json.loads(found(0.5).content) | {"exp": "x", "row": None, "overrides": ["+exp=x"]}
    run = type(found(0.5))(directory / "result.json", json.dumps(content))
    path = tmp_path / "report.html"
    path.write_text(report.page([TableView("toy.one", TABLE, rows)], [run]))
    return path


def in_browser(page: Path, script: str, *options: str) -> object:
    """What the script, run in the page after it has loaded, puts into `result`. No console message is allowed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the page in")
    ending = "document.body.innerHTML = ''; document.body.textContent = 'RESULT' + JSON.stringify(result) + 'END';"
    probe = page.with_name("probe.html")
    probe.write_text(page.read_text() + f"<script>(async () => {{ let result; {script}\n{ending} }})();</script>")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--virtual-time-budget=20000", *options, probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not messages
    return json.loads(html.unescape(re.search("RESULT(.*)END", done.stdout, re.DOTALL).group(1)))


def test_tables_of_which_nothing_was_run_come_last_and_folded(tmp_path):
    def table(name, run):
        rows = [row_view(id_, row, TABLE.columns, [found(0.9)] if run else []) for id_, row in TABLE.rows.items()]
        return TableView(name, TABLE, rows)

    path = tmp_path / "report.html"
    path.write_text(report.page([table("toy.empty", False), table("toy.full", True)], []))
    text = path.read_text()
    assert text.index('id="table-toy-full"') < text.index('id="table-toy-empty"') < text.index("none run yet")
    assert text.count("none run yet") == 1
    script = """
    const fold = document.querySelector("details.unrun"), before = fold.open;
    const filter = document.getElementById("filter");
    filter.value = "toy"; filter.dispatchEvent(new Event("input"));
    result = [before, fold.open];"""
    assert in_browser(path, script) == [False, True]


def test_it_is_whole_and_needs_nothing_else(page):
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script>alert" not in text

    open_tags = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "link", "input", "br", "img", "path", "circle"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("path", "circle"):
                assert open_tags.pop() == tag

    Balance().feed(text)
    assert not open_tags


def test_what_it_says(page):
    text = page.read_text()
    assert "Accuracy &lt;by&gt; step &amp; size" in text
    assert "nine &lt;b&gt;" in text
    assert 'aria-label="within tolerance">✓' in text
    assert "training: loss" in text
    assert "certified" in text
    assert "data:image/png;base64," in text
    assert "a CPU" in text


def test_sorting(page):
    script = """
    const labels = () => [...document.querySelectorAll("table.sortable tbody th span")].map((s) => s.textContent);
    const button = (i) => document.querySelectorAll("table.sortable thead button")[i];
    result = [];
    button(1).click(); result.push(labels());
    button(1).click(); result.push(labels(), button(1).parentElement.getAttribute("aria-sort"));
    button(0).click(); result.push(labels(), button(1).parentElement.getAttribute("aria-sort"));
    """
    assert in_browser(page, script) == [
        ["nine <b>", "ten", "hundred", "none"],
        ["hundred", "ten", "nine <b>", "none"],
        "descending",
        ["hundred", "nine <b>", "none", "ten"],
        None,
    ]


def test_filtering(page):
    script = """
    const shown = () => [...document.querySelectorAll("table.sortable tbody tr")].filter((r) => r.offsetParent)
      .map((r) => r.querySelector("span").textContent);
    const type = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
    result = [];
    type("toy nine"); result.push(shown(), document.getElementById("count").textContent);
    type("nothing of that kind"); result.push(shown(), document.querySelector("section.table").hidden);
    type(""); status.value = "open"; status.dispatchEvent(new Event("change")); result.push(shown());
    status.value = ""; status.dispatchEvent(new Event("change")); result.push(shown().length);
    """
    assert in_browser(page, script) == [["nine <b>"], "1 of 4 rows", [], True, ["none"], 4]


def test_a_phone_scrolls_in_one_direction(page):
    script = "result = [document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).fontSize];"
    width, window, size = in_browser(page, script, "--window-size=500,800")
    assert width <= window
    assert size == "16px"


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """axe-core, the accessibility checker, from the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("no npm to obtain axe-core with")
    where = tmp_path_factory.mktemp("axe")
    done = subprocess.run(["npm", "pack", "axe-core@4", "--silent"], cwd=where, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("axe-core is not to be had from the npm registry")
    with tarfile.open(next(where.glob("*.tgz"))) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page, axe, scheme):
    page.write_text(page.read_text() + "<script>" + axe.replace("</script", "<\\/script") + "</script>")
    script = """
    document.querySelectorAll("details").forEach((d) => { d.open = true; });
    const found = await axe.run({ resultTypes: ["violations"] });
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    result = [dark, found.violations.map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 120)).slice(0, 3)])];
    """
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dark, violations = in_browser(page, script, *options)
    assert violations == []
    assert dark == (scheme == "dark")
