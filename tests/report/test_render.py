"""The rendered report: one file that opens anywhere, escapes everything, and says the same in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from blockyard.compare.output import write_report
from blockyard.errors import InputError
from blockyard.report.charts.curves import loss_curves
from blockyard.report.html import render_html
from blockyard.report.palette import LIGHT
from blockyard.report.render import charts_of, render_svg
from blockyard.report.text import CSV_COLUMNS, render_csv, render_markdown
from blockyard.report.verdict import analyse
from blockyard.report.write import load_report, without_nan
from blockyard.tasks.lm.report import LMParts
from tests.fixtures.reports import SHAPES, synthetic_report

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Checker(HTMLParser):
    """Fails on tags that do not nest; collects ids, addresses and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data"):
                self.addresses.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report():
    return analyse(synthetic_report(tuple(SHAPES)))


@pytest.fixture(scope="module")
def page(report):
    return render_html(report, LMParts())


@pytest.fixture(scope="module")
def checked(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    return checker


def test_every_tag_of_the_page_is_closed_in_order(checked):
    assert checked.open == []


def test_the_page_needs_no_network_and_runs_no_script(page, checked):
    assert all(address.startswith("#") for address in checked.addresses)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert "script" not in checked.tags


def test_ids_are_unique_and_every_reference_has_its_target(page, checked):
    assert len(checked.ids) == len(set(checked.ids))
    referred = {address[1:] for address in checked.addresses} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred <= set(checked.ids)


def test_figures_take_their_colours_from_the_page(report):
    for chart in charts_of(report, LMParts()):
        colours = set(re.findall(r"#[0-9a-fA-F]{6}", render_svg(chart, report)))
        assert colours == set(), f"{chart.name} has fixed colours {colours}"


def test_a_figure_stays_near_forty_kilobytes(report):
    sizes = {chart.name: len(render_svg(chart, report)) for chart in charts_of(report, LMParts())}
    assert max(sizes.values()) < 60_000, sizes


def test_the_page_opens_with_the_answer(report, checked):
    text = " ".join("".join(checked.text).split())
    headline = " ".join(report["verdict"]["headline"].split())
    assert headline in text
    assert text.index(headline) < text.index("Ranking")


def test_axes_have_units_and_captions_the_number_of_seeds(report, checked):
    text = "".join(checked.text)
    for label in ("training tokens (millions)", "training clock (s)", "training compute (TFLOP)", "loss (nats/byte)"):
        assert label in text
    assert all("n = 3" in chart.caption for chart in charts_of(report, LMParts()))


def test_text_from_outside_is_escaped_everywhere():
    raw = synthetic_report(("standard", "tva+vft"))
    evil = "<script>alert('x')</script>&amp;"
    raw["choices"][1]["sample"]["text"] = evil
    raw["choices"][1]["name"] = evil
    raw["provenance"]["command"] = evil
    raw["provenance"]["data"]["source"] = evil
    raw["notes"] = [evil]
    page = render_html(analyse(raw), LMParts())
    checker = Checker()
    checker.feed(page)
    assert "script" not in checker.tags
    assert "".join(checker.text).count(evil) >= 5


def test_markdown_shows_a_sample_with_backticks_as_it_is():
    raw = synthetic_report()
    raw["choices"][0]["sample"]["text"] = "```\nnot the end\n````"
    text = render_markdown(analyse(raw), LMParts())
    assert "`````text\ndef ```\nnot the end\n````\n`````" in text


def test_csv_has_one_line_for_each_run(report):
    rows = list(csv.DictReader(io.StringIO(render_csv(report))))
    assert len(rows) == len(SHAPES) * 3
    assert tuple(rows[0]) == CSV_COLUMNS
    assert {row["choice"] for row in rows} == set(SHAPES)
    assert float(rows[0]["final_loss"]) == report["choices"][0]["runs"][0]["final_loss"]


def test_every_form_is_written_and_the_json_reads_back(tmp_path):
    files = write_report(synthetic_report(), tmp_path / "out")
    assert {"json", "html", "md", "csv", "png:final-loss", "png:loss-tokens"} <= set(files)
    assert files["png:final-loss"].read_bytes().startswith(b"\x89PNG")
    assert load_report(tmp_path / "out")["verdict"]["kind"] == "winner"
    assert not list((tmp_path / "out").glob(".*"))


def test_not_a_number_becomes_null_in_the_json(tmp_path):
    raw = synthetic_report(diverged=(("tva+vft", 0),))
    raw["choices"][1]["runs"][0]["final_loss"] = float("nan")
    files = write_report(raw, tmp_path)
    found = json.loads(files["json"].read_text(), parse_constant=lambda word: pytest.fail(word))
    assert found["choices"][1]["runs"][0]["final_loss"] is None
    assert without_nan({"a": [float("inf"), 1.0]}) == {"a": [None, 1.0]}


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 1},
        {"names": ("standard",)},
        {"diverged": (("standard", 0), ("standard", 1), ("standard", 2))},
        {"seeds": 2, "diverged": tuple((n, s) for n in ("standard", "tva+vft") for s in range(2))},
        {"points": 3},
    ],
    ids=["one seed", "one choice", "one choice diverged", "all diverged", "few points"],
)
def test_unusual_reports_still_render(options):
    page = render_html(analyse(synthetic_report(**options)), LMParts())
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r"\bnan\b", "".join(checker.text).lower())


def test_a_report_without_measured_speed_memory_or_sample_renders():
    raw = synthetic_report()
    for choice in raw["choices"]:
        choice.update(speed=None, memory=None, sample=None, cache_bytes_per_token=None)
    page = render_html(analyse(raw), LMParts())
    assert "What they write" not in page
    assert "–" in page


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ('{"schema": "other/9"}', "schema 'other/9'"), (None, "cannot read the report")],
)
def test_a_report_that_cannot_be_read_is_one_clear_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(words)):
        load_report(tmp_path)


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot write the report"):
        write_report(synthetic_report(), tmp_path / "out")


def test_losses_per_token_are_shown_per_byte_too():
    raw = synthetic_report()
    raw["quality"].update(unit="nats/token", bytes_per_token=3.0)
    text = render_markdown(analyse(raw), LMParts())
    mean = analyse(raw)["ranking"][0]["final"]["mean"]
    assert f"{mean / 3:.3f} nats/byte" in text
    assert "A token is 3.00 bytes on average" in text


def vertical_limits(chart):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    chart.draw(axes, LIGHT)
    return axes.get_ylim()


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_steep_beginning_of_a_loss_is_cut_off_and_nothing_of_an_accuracy(better):
    report = synthetic_report(seeds=1)
    report["quality"].update(better=better, metric="accuracy" if better == "higher" else "perplexity")
    for choice in report["choices"]:
        (run,) = choice["runs"]
        ticks = [100 * (i + 1) for i in range(10)]
        values = {
            "higher": [0.2, 0.4, 0.6, 0.6, 0.7, 0.1, 0.72, 0.74, 0.76, 0.78],
            "lower": [9.0, *(2 - 0.05 * i for i in range(9))],
        }[better]
        run["quality"] = {"step": ticks, "tokens": ticks, "seconds": ticks, "flops": ticks, "loss": values}
    charts = {chart.name: chart for chart in loss_curves(analyse(report))}
    low, high = vertical_limits(charts["loss-tokens"])
    told = "The steep beginning is cut off." in charts["loss-tokens"].caption
    if better == "higher":
        assert low < 0.1 and high > 0.78 and not told
    else:
        assert high < 9 and told


def test_a_report_of_an_earlier_version_still_opens_and_is_judged_in_todays_words(tmp_path):
    """As version 0.1 before three words wrote it: `none`, `tie`, no margin, no answers, no confirmation."""
    old = analyse(synthetic_report(floors={"tva+vft": 1.503}))
    for name in ("margin", "answers"):
        old.pop(name)
    for row in old["comparisons"]:
        row["verdict"] = "none"
        row.pop("more_seeds", None)
    old["verdict"] = {"kind": "tie", "headline": "No difference shown with these seeds.", "details": []}
    old["quality"].pop("margin", None)
    (tmp_path / "report.json").write_text(json.dumps(old))
    found = load_report(tmp_path)
    files = write_report(found, tmp_path / "new")
    assert "has the best mean" in files["html"].read_text()
    assert [row["verdict"] for row in load_report(tmp_path / "new")["comparisons"]] == ["undecided"]
