"""What a notebook shows: pages in a cell that disturb nothing around them, small tables; a notebook that runs."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import pytest

from blockyard.bench.write import shown as shown_bench
from blockyard.compare import load_report
from blockyard.compare.output import write_report
from blockyard.conformance.suite import Report, Row
from blockyard.errors import MissingExtra
from blockyard.multihead.swap import Swapped, SwapReport
from blockyard.report import write
from blockyard.report.html import render_cell
from blockyard.report.notebook import SCOPE, Record, scoped, small_table
from blockyard.report.page import style_sheet
from blockyard.report.parts import Parts
from blockyard.report.verdict import analyse
from blockyard.tasks.lm.report import LMParts
from blockyard.transplant.decision import LayerChoice
from blockyard.transplant.measure import Difference
from blockyard.transplant.record import Tried
from tests.fixtures.reports import synthetic_report
from tests.report.test_render import Checker

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
HOSTILE = "<script>alert(1)</script>&\"'"


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open, "every tag is closed"
    return checker


@pytest.fixture(scope="module")
def report():
    return analyse(synthetic_report(("standard", "tva+vft")))


@pytest.fixture(scope="module")
def cell(report):
    return render_cell(report, LMParts())


def test_every_rule_of_a_cell_reaches_that_cell_alone():
    css = scoped(style_sheet())
    heads = [head.strip() for head in re.findall(r"([^{}]+)\{", css)]
    assert len(heads) > 60
    for head in heads:
        assert head.startswith("@media") or all(name.strip().startswith(SCOPE) for name in head.split(",")), head


def test_scoping_changes_selectors_and_nothing_else():
    css = "/* a, b { */ :root { --x: 1; }\nh1, td.text { margin: 0; }\n@media print {\n  body { padding: 0; }\n}\n"
    assert scoped(css, ".s") == (
        " .s { --x: 1; }\n.s h1, .s td.text { margin: 0; }\n@media print {\n  .s { padding: 0; }\n}\n"
    )


def test_a_page_in_a_cell_is_whole_and_runs_nothing(cell):
    found = checked(cell)
    assert not {"script", "link", "iframe", "html", "body", "object"} & found.tags
    assert not [address for address in found.addresses if not address.startswith("#")]
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", cell, flags=re.DOTALL)
    assert len(found.ids) == len(set(found.ids))


def test_the_answer_is_shown_at_once_and_the_rest_is_folded(report, cell):
    before, _, after = cell.partition("<details>")
    assert report["verdict"]["headline"] in before.replace("\u00a0", " ") and "Ranking" in before
    assert "Provenance" in after and "Provenance" not in before


def test_figures_of_two_reports_share_no_ids(report, cell):
    other = copy.deepcopy(report)
    other["created"] = "another day"
    again = checked(render_cell(other, LMParts())).ids
    assert again and not set(again) & set(checked(cell).ids)


def test_a_hostile_name_stays_text(report):
    other = copy.deepcopy(report)
    for choice in other["choices"]:
        choice["sample"] = {"prompt": HOSTILE, "text": HOSTILE, "seed": 1}
    other["verdict"]["headline"] = HOSTILE
    other["provenance"]["command"] = HOSTILE
    assert "script" not in checked(render_cell(other, Parts())).tags


def test_a_report_is_still_the_dictionary_that_it_was(report, tmp_path):
    write_report(report, tmp_path)
    whole, plain = load_report(tmp_path), write.load_report(tmp_path)
    assert whole == plain == json.loads((tmp_path / "report.json").read_text())
    assert repr(whole) == repr(dict(whole)) and json.dumps(whole) == json.dumps(dict(whole))
    assert isinstance(whole, Record)
    for again in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert again == whole and again._repr_html_() == whole._repr_html_()


def test_what_the_task_adds_is_shown_by_the_comparisons_own_reader(report, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(write, "render_cell", lambda found, parts: seen.append(type(parts).__name__) or "<p></p>")
    write_report(report, tmp_path)
    load_report(tmp_path)._repr_html_()
    write.load_report(tmp_path)._repr_html_()
    assert seen == ["LMParts", "Parts"]


def test_a_missing_library_is_one_line():
    def show(record):
        raise MissingExtra("pip install 'blockyard[report]' <now>")

    assert Record({"a": 1}, show)._repr_html_() == "<p>pip install &#x27;blockyard[report]&#x27; &lt;now&gt;</p>"


def test_a_benchmark_is_shown_as_its_page():
    bench = {
        "schema": "blockyard.bench/1",
        "kind": "decode",
        "created": "today",
        "title": f"Decoding {HOSTILE}",
        "reference": "standard",
        "settings": {},
        "environment": {"device": "cpu", "threads": 1, "cpus": 1, "blockyard": "0", "packages": {}, "platform": "p"},
        "command": HOSTILE,
        "seconds": 1.0,
        "choices": [{"name": HOSTILE, "blocks": "standard", "layers": 1, "parameters": 1}],
        "rows": [],
        "notes": [HOSTILE],
    }
    found = checked(shown_bench(bench)._repr_html_())
    assert "script" not in found.tags and "All figures, provenance" in found.text


def test_small_tables_escape_and_bring_no_style():
    html = small_table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)
    assert checked(html).tags == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert checked(html).text.count(HOSTILE) == 4


ONE = Difference(0.0123, 0.004, 4096)


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (ONE, ["+0.012 ± 0.004", "nats per token", "4,096"]),
        (
            LayerChoice("standard[window=8]", (1, 3), ONE, (Tried("mla", (), ONE),), {1: ONE}, ()),
            ["standard[window=8] in layers 1, 3", "mla in no layer", "layer 1 alone", "+0.012 ± 0.004"],
        ),
        (
            Report(HOSTILE, (Row("is causal", "passed", "", 0.0), Row("has a cache", "failed", HOSTILE, 0.0))),
            ["1 passed, 1 failed", "has a cache", HOSTILE],
        ),
        (
            SwapReport("tva", (Swapped("a.b", "Their", ("w",), ("v",), False),), {"c": HOSTILE}, ("said",)),
            ["a.b", "left alone", HOSTILE, "said"],
        ),
    ],
    ids=["difference", "layer choice", "conformance", "swap"],
)
def test_what_the_tools_return_says_the_same_in_a_notebook(thing, told):
    found = checked(thing._repr_html_())
    text = " ".join(found.text)
    assert "script" not in found.tags
    assert all(words in text for words in told), text


def committed() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_it_printed(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None and not cell["metadata"] for cell in cells)


# What the pages of each notebook say, of the first to the last; the slow ones pass what the quick ones pass.
SHOWN = {
    "compare": ["A run of train lm", "Provenance"],
    "language-model": ["A run of train lm", "layers 0–1"],
    "prices": ["q0.95"],
    "signals": ["A run of train signal"],
}
QUICK = ("language-model",)


def test_every_notebook_has_its_pages_named():
    assert [path.stem for path in committed()] == sorted(SHOWN)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHOWN]
)
def test_a_notebook_runs_and_shows_its_pages(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra dev has it")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev has it")
    client = pytest.importorskip("jupyter_client", reason="the extra dev has it")
    pytest.importorskip("ipykernel", reason="the extra dev has it")
    if name == "prices":
        pytest.importorskip("arch", reason="the extra prices has it")
    # Nothing of this machine's notebooks: neither its settings nor its kernels, and no open port.
    for folder in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "BLOCKYARD_CACHE"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    manager = client.AsyncKernelManager(transport="ipc", ip=str(tmp_path / "k"))
    nbclient.NotebookClient(notebook, timeout=300, km=manager, resources={"metadata": {"path": tmp_path}}).execute()
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    for words in SHOWN[name]:
        assert any(words in page for page in pages), words
    if name == "compare":
        found = checked(pages[-1])
        assert "Provenance" in found.text and "svg" in found.tags and "script" not in found.tags
