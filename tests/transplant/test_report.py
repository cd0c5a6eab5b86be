"""The report of a transplant says what it must, plainly where a choice is worse, and is made from its file alone."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from blockyard.transplant.findings import details, headline, made, recall_change, worse_than_original
from blockyard.transplant.measure import Difference
from blockyard.transplant.record import (
    Choice,
    Decode,
    Healed,
    LayerRow,
    Measures,
    Recall,
    Record,
    Sample,
    TextSet,
    Tried,
    load_record,
)
from blockyard.transplant.report import render_csv, render_html, render_markdown, write_report
from blockyard.transplant.tables import layers, overview, ranges

EVIL = '$\\frac{$</pre><script>alert("x")</script> ``` | ![a](http://evil.example/x.png)'


def measures(
    above: float | None = None,
    *,
    half: float = 0.01,
    speed: float = 1.0,
    word: str = "",
    share: float = 1.0,
    parameters: int = 1000,
    second: float = 0.3,
    text: str = "and so on",
) -> Measures:
    costs = []
    for context in (512, 2048, 8192):
        size = int(share * 8 * context)
        ms = 10.0 / speed
        costs.append(Decode(context, ms, ms - 1, ms + 1, speed, word, size, (size // 2, size // 2)))
    found = None if above is None else {kind: Difference(above, half, 4000) for kind in ("verse", "code", "all")}
    return Measures(
        loss={"verse": 3.0, "code": 2.0},
        above=found,
        recall=(Recall("verse", "code", 400, 300, 3.0, second), Recall("code", "verse", 400, 900, 2.0, second)),
        decode=tuple(costs),
        parameters=parameters,
        parameter_bytes=4 * parameters,
        samples=(Sample("verse", "Once", text),),
    )


def choice(name: str, found: Measures | None = None, **more) -> Choice:
    rows = (LayerRow(0, "standard+swiglu", False, 8), LayerRow(1, "mla+swiglu", True, 4, Difference(0.02, 0.01, 99)))
    return Choice(name, f"{name}[blocks]", layers=(1,), rows=rows, measures=found, **more)


def record(*choices: Choice, **more) -> Record:
    found = Record(
        model="a model",
        layers=2,
        d_model=8,
        texts=(TextSet("verse", ("verse.txt",), 10, 20, 30), TextSet("code", ("code.py",), 10, 20, 30)),
        piece_length=64,
        first_token=False,
        budget_loss=None,
        budget_cache=None,
        context=8192,
        original=measures(),
        choices=choices,
    )
    return replace(found, **more)


SLOWER = choice("small", measures(0.2, speed=0.8, word="worse", share=0.5, parameters=1500, second=0.9))
FASTER = choice("quick", measures(0.004, speed=1.5, word="better", share=0.4))
SAME = choice("alike", measures(-0.05, speed=1.0, word="equivalent", share=1.0))
DIM = choice("dim", measures(0.03, speed=0.97, word="undecided", share=1.2))
REFUSED = Choice("odd", "tva[rank=4]", refused="'tva' cannot be fitted to trained attention")


def test_a_slower_and_larger_model_is_called_so_plainly():
    found = record(SLOWER)
    assert headline(found) == (
        "small: +0.200 ± 0.010 nats per token; 50 % of the cache at 8,192 tokens; slower: a token takes 1.25× as long "
        "(12.5 ms beside 10.0); 500 more parameters; recall suffers."
    )
    said = worse_than_original(made(found)[0])
    assert said[0].startswith("Higher loss on verse (+0.200 ± 0.010)")
    assert said[1].startswith("Slower: a token takes 1.25× as long behind 512 tokens, 1.25× as long behind 2,048")
    # 2,000 bytes more of weights; half the cache saves 2,048 at 512 tokens, so nothing is larger in all.
    assert said[2] == "Larger: 500 more parameters (+50.0 %)."
    assert said[3].startswith("Recall suffers: a text that stands in the context already costs 0.90 nats")
    for text in (render_html(found), render_markdown(found)):
        assert "Where a choice is worse than the original" in text and "Slower: a token takes" in text


def test_weights_that_outweigh_the_smaller_cache_are_told():
    heavy = choice("heavy", measures(0.0, speed=1.0, word="equivalent", share=0.5, parameters=4000))
    said = worse_than_original(made(record(heavy))[0])
    # 12,000 bytes more of weights; half of 8 bytes a token saves 2,048, 8,192 and 32,768.
    assert said == [
        "Larger: 3,000 more parameters (+300.0 %), so weights and cache together take more memory at 512 and 2,048 "
        "tokens."
    ]


def test_a_faster_model_whose_loss_is_not_shown_is_not_called_worse():
    found = record(FASTER)
    assert headline(found) == (
        "quick: +0.004 ± 0.010 nats per token, within its interval of nothing; 40 % of the cache at 8,192 tokens; "
        "1.50× as fast (6.67 ms beside 10.0)."
    )
    assert worse_than_original(made(found)[0]) == []
    assert "In nothing that was measured and is shown." in render_html(found)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (SAME, "which is better than the original; as large a cache at 8,192 tokens; as fast (10.0 ms beside 10.0)"),
        (DIM, "a cache 20 % larger at 8,192 tokens; not shown to be faster or slower"),
    ],
    ids=["better", "larger cache"],
)
def test_other_words(one, said):
    assert said in headline(record(one))


def test_recall_is_warned_of_by_its_rule_and_not_before():
    original = (Recall("verse", "code", 9, 9, 3.0, 0.3),)

    def suffers(second: float, first: float = 3.0, old=original) -> bool:
        change = recall_change((Recall("verse", "code", 9, 9, first, second),), old)
        assert change is not None
        return change.suffers

    assert not suffers(0.39) and suffers(0.41)
    # A gain of 2.7 that falls by more than a tenth, though the second copy is as cheap as before.
    assert not suffers(0.3, first=2.74) and suffers(0.3, first=2.72)
    # An original that gains nothing from a copy has no recall to lose.
    assert not suffers(3.05, first=3.05, old=(Recall("verse", "code", 9, 9, 3.0, 2.98),))
    assert recall_change((), ()) is None


def test_several_choices_are_answered_by_the_budget():
    both = (SLOWER, FASTER, REFUSED)
    assert headline(record(*both)).startswith("quick costs least and keeps the smallest cache")
    within = record(SLOWER, SAME, budget_loss=0.25)
    assert headline(within).startswith("Within 0.25 nats per token small saves most")
    tight = replace(record(SLOWER), budget_loss=0.05)
    assert "small is beyond the budget of 0.05 nats per token on the text reported here." in details(tight)
    assert headline(replace(record(SLOWER, DIM), budget_loss=0.01)).startswith("No choice stays within 0.01")
    cache = replace(record(*both), budget_cache=0.5)
    assert headline(cache).startswith("With at most 50 % of the cache quick costs least")
    assert "small has" not in " ".join(details(cache))
    assert "Refused: odd; the reasons are below." in details(cache)


def test_nothing_made_is_said_with_its_reason():
    found = record(REFUSED)
    assert headline(found) == "Nothing was transplanted: 'tva' cannot be fitted to trained attention"
    text = render_html(found)
    assert "tva[rank=4]" in text and "Where a choice is worse" not in text


def test_what_was_not_measured_is_left_out_and_said():
    bare = replace(measures(0.1), recall=(), decode=(), samples=())
    found = replace(record(choice("bare", bare)), original=replace(measures(), recall=(), decode=(), samples=()))
    assert any(line.startswith("Recall was not tested: the texts to report on, or") for line in details(found))
    text = render_markdown(found)
    assert "## Recall" not in text and "## Time and cache" not in text and "What they write" not in text
    assert headline(found) == "bare: +0.100 ± 0.010 nats per token."
    assert overview(found).columns == ["choice", "loss above", "parameters", "layers changed"]
    render_html(found), render_csv(found)


def full() -> Record:
    small = replace(
        SLOWER,
        trials=(
            Tried("small[blocks]", (0, 1), Difference(0.4, 0.1, 99), 30_000),
            Tried("small[blocks]", (1,), Difference(0.1, 0.1, 9)),
        ),
        healing=(Healed(0, {"verse": 3.2, "code": 2.3}), Healed(512, {"verse": 3.1, "code": 2.2})),
        notes=("healed a little",),
        cpu_seconds={"fit": 9.0},
        run="small",
    )
    return record(
        small,
        FASTER,
        REFUSED,
        warnings=("texts are short",),
        command="blockyard transplant 'a model'",
        cpu_seconds={"moments": 76.0},
        peak_bytes=2**30,
        environment={"device": "a processor", "packages": {}},
    )


def test_the_page_has_all_of_it_and_is_made_from_the_file_alone(tmp_path):
    files = write_report(full(), tmp_path)
    text = files["html"].read_text()
    for heading in (
        "Where a choice is worse than the original",
        "What it costs and saves",
        "Loss by kind of text",
        "Recall",
        "Time and cache of a token",
        "Memory",
        "What they write",
        "What stands in which layer",
        "How layers were chosen",
        "Healing",
        "Refused",
        "Texts",
        "Time it took",
        "Provenance",
    ):
        assert f"<h2>{heading}</h2>" in text, heading
        if heading not in ("What they write",):
            assert f"## {heading}" in files["md"].read_text()
    # No script, nothing from a network; a picture for each of loss, cache, time, bytes, layers and healing.
    assert "<script" not in text and not re.search(r"(?:src|href)=\"(?!#)", text)
    assert text.count("<svg role=") == 6
    assert "small and quick" not in text and "Warning of small." in text
    assert "a processor" in text and "1.00 GiB of the whole process" in text and "healed a little" in text
    write_report(load_record(tmp_path), tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text() == text


def test_what_models_write_and_names_cannot_become_part_of_the_page():
    above = {kind: Difference(0.1, 0.1, 9) for kind in (EVIL, "all")}
    evil = choice(f"<u>{EVIL}", replace(measures(0.1, text=EVIL), loss={EVIL: 2.1}, above=above), notes=(EVIL,))
    found = replace(
        record(evil, replace(REFUSED, refused=EVIL)),
        model=EVIL,
        texts=(TextSet(EVIL, (EVIL,), 1, 1, 1),),
        warnings=(EVIL,),
        original=replace(measures(text=EVIL), loss={EVIL: 2.0}),
        command=EVIL,
    )
    text = render_html(found)
    assert "&lt;script&gt;" in text
    for tag in ("<script", "<img", "</pre><", "<u>"):
        assert tag not in text.replace("</pre></article>", "").replace("</pre></div>", ""), tag
    markdown = render_markdown(found)
    # Outside of code blocks, whose fences are longer than any run of backticks in them, tags and images are text.
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", markdown)
    assert "script" in outside
    assert not re.search(r"(?<!\\)(<script|<u>|\[a\]|```)", outside)


def test_csv_has_a_line_for_each_figure():
    rows = list(csv.DictReader(io.StringIO(render_csv(full()))))
    cells = {(row["model"], row["what"], row["of"]): row["value"] for row in rows}
    assert cells["small", "above", "all"] == "0.2" and cells["original", "loss", "verse"] == "3.0"
    assert cells["small", "cache", "8192"] == str(4 * 8192) and cells["quick", "parameters", ""] == "1000"
    assert cells["odd", "refused", "'tva' cannot be fitted to trained attention"] == ""


def test_layers_are_listed_by_block_and_one_by_one():
    by_block, one_by_one = layers(record(SLOWER))
    assert by_block.rows == [["mla+swiglu", "new", "1"], ["standard+swiglu", "as it was", "0"]]
    assert one_by_one.folded and one_by_one.rows[1] == ["1", "new", "4", "16.0 KiB", "+0.020 ± 0.010"]
    assert ranges((0, 1, 2, 4, 6, 7, 9)) == "0 to 2, 4, 6, 7, 9"
