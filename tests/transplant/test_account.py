"""What is measured of a model: losses and copies by hand, costs of a token, samples; and the record that keeps it."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from blockyard.errors import InputError
from blockyard.transplant import transplant
from blockyard.transplant.account import (
    _Reader,
    decode_costs,
    decode_text,
    layer_rows,
    make_probe,
    measure,
    text_losses,
)
from blockyard.transplant.measure import difference, difference_over, recall_losses
from blockyard.transplant.record import Choice, Record, TextSet, from_json, load_record, save_record, to_json
from tests.transplant.test_transplant import build, text

KINDS = ("verse", "code")


class Letters:
    """A tokenizer of single characters."""

    def decode(self, ids) -> str:
        return "".join(chr(48 + i) for i in ids)


def texts(pieces: int = 4) -> dict[str, torch.Tensor]:
    both = text(2 * pieces)
    return {"verse": both[:pieces], "code": both[pieces:]}


def windowed(model, window: int = 8):
    return transplant(model, f"standard[window={window},sinks=2]", layers=[1])


def by_hand(model, piece: torch.Tensor) -> list[float]:
    with torch.no_grad():
        logits = model(piece[None]).logits[0].double()
    return [float(-logits[t].log_softmax(-1)[piece[t + 1]]) for t in range(len(piece) - 1)]


def test_losses_are_those_worked_out_token_by_token():
    model, new = build(), windowed(build())
    probe = make_probe(texts(), copied=20, apart=(4, 9), prompt_tokens=5, sample_tokens=6)
    old = text_losses(model, probe.texts)
    found = measure(new, probe, Letters(), original=old)
    for kind in KINDS:
        mine = [by_hand(new, piece) for piece in probe.texts[kind]]
        theirs = [by_hand(model, piece) for piece in probe.texts[kind]]
        assert found.loss[kind] == pytest.approx(sum(map(sum, mine)) / sum(map(len, mine)), abs=1e-5)
        each = [sum(a) / len(a) - sum(b) / len(b) for a, b in zip(mine, theirs)]
        mean = sum(each) / 4
        # t of three degrees of freedom is 3.1824; the expansion in use is within 1 % of it.
        half = 3.1824 * math.sqrt(sum((e - mean) ** 2 for e in each) / 3 / 4)
        assert found.above is not None
        assert found.above[kind].mean == pytest.approx(mean, abs=1e-5)
        assert found.above[kind].half == pytest.approx(half, rel=0.011)
    assert found.above is not None and set(found.above) == {*KINDS, "all"}
    assert found.above["all"].mean == pytest.approx(sum(found.above[k].mean for k in KINDS) / 2, abs=1e-6)


def test_the_original_beside_itself_costs_nothing():
    model = build()
    probe = make_probe(texts(), copied=20, apart=(4,))
    old = text_losses(model, probe.texts)
    again = measure(model, probe, Letters(), original=old, losses=old)
    assert again.above is not None and all(d.mean == 0 and d.half == 0 for d in again.above.values())
    assert measure(model, probe, Letters(), losses=old).above is None


def test_kinds_that_differ_do_not_widen_the_interval_over_all():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 6, 10, generator=generator) * 0.01
    old = [torch.zeros(6, 10), torch.zeros(6, 10)]
    apart = [noise[0] + 1.0, noise[1] + 3.0]
    both = difference_over(apart, old)
    assert both.mean == pytest.approx(2.0, abs=0.01)
    assert both.half < 0.02 < difference(torch.cat(apart), torch.cat(old)).half
    assert difference_over([apart[0]], [old[0]]) == difference(apart[0], old[0])
    assert math.isnan(difference_over([apart[0], apart[1][:1]], [old[0], old[1][:1]]).half)


def test_a_copy_is_scored_where_it_stands():
    model = build()
    first, between = text(1)[0, :9], text(2)[1, :7]
    whole = torch.cat([torch.tensor([3]), first, between, first])
    scored = by_hand(model, whole)
    a, b = recall_losses(model, first, between, first_token=3)
    # Token i of the whole is predicted at place i - 1; the first token of a copy is no part of it.
    assert a.tolist() == pytest.approx(scored[1:9], abs=1e-4)
    assert b.tolist() == pytest.approx(scored[-8:], abs=1e-4)


def test_copies_stand_in_other_places_and_between_stands_other_text():
    probe = make_probe(texts(), copied=20, apart=(4, 9))
    assert [(t.kind, t.between_kind, len(t.text), len(t.between)) for t in probe.copies] == [
        ("verse", "code", 20, 4),
        ("verse", "code", 20, 9),
        ("code", "verse", 20, 4),
        ("code", "verse", 20, 9),
    ]
    assert not torch.equal(probe.copies[0].text, probe.copies[1].text)
    alone = make_probe({"verse": texts()["verse"]}, copied=20, apart=(4, 9)).copies
    # One kind alone: its halves lend each other, and a copy never stands between its own two.
    running = texts()["verse"].reshape(-1)
    for test, start in zip(alone, (0, len(running) // 2)):
        assert torch.equal(test.text, running[start : start + 20])
        assert torch.equal(test.between, running[start + 20 : start + 20 + len(test.between)])


def test_the_first_token_stands_before_a_copy_once_and_not_in_it():
    ids = {kind: torch.cat([torch.full((4, 1), 60), piece], 1) for kind, piece in texts().items()}
    probe = make_probe(ids, 60, copied=60, apart=(4,), prompt_tokens=5)
    assert all(not (test.text == 60).any() or (texts()[test.kind] == 60).any() for test in probe.copies)
    assert all(torch.equal(prompt, ids[kind][-1, :6]) for kind, prompt in probe.prompts.items())
    shown = measure(build(), probe, Letters()).samples[0]
    assert shown.prompt == Letters().decode(texts()["verse"][-1, :5].tolist())


@pytest.mark.parametrize("first", [None, 60])
def test_nothing_that_is_asked_goes_beyond_the_context(first):
    ids = {kind: torch.cat([piece, piece], 1) for kind, piece in texts().items()}
    probe = make_probe(ids, first, context=60)
    front = int(first is not None)
    sizes = {(len(test.text), len(test.between)) for test in probe.copies}
    assert sizes and all(front + 2 * text + between <= 60 for text, between in sizes)
    assert all(len(prompt) + probe.sample_tokens <= 60 for prompt in probe.prompts.values())


def test_short_texts_make_no_copies_and_no_text_is_refused():
    assert make_probe({"verse": text(1, 12)}).copies == ()
    with pytest.raises(InputError, match="at least one kind"):
        make_probe({})


def test_samples_are_the_likeliest_tokens():
    model = build()
    probe = make_probe(texts(), prompt_tokens=5, sample_tokens=4)
    sample = measure(model, probe, Letters()).samples[1]
    ids = texts()["code"][-1, :5].tolist()
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert (sample.kind, sample.prompt + sample.text) == ("code", Letters().decode(ids))


def test_bytes_of_a_token_are_those_of_the_caches_and_models_take_turns():
    model = build()
    small = windowed(model)
    found = decode_costs(
        {"original": model, "window": small}, text().reshape(-1), (80, 16), rounds=6, round_seconds=1e-4
    )
    old, new = found["original"], found["window"]
    assert [d.context for d in old] == [16, 80]
    # Two layers of two key heads, keys and values of 8 numbers, 4 bytes each.
    assert [d.layer_bytes for d in old] == [(2 * 2 * 8 * 4 * n,) * 2 for n in (16, 80)]
    assert old[0].speed == 1.0 and old[0].word == "" and all(d.low <= d.ms_per_token <= d.high for d in old)
    assert new[1].layer_bytes[0] == old[1].layer_bytes[0] and new[1].cache_bytes == sum(new[1].layer_bytes)
    assert new[1].layer_bytes[1] < old[1].layer_bytes[1]
    assert all(d.speed > 0 and d.word for d in new)


def test_timing_leaves_a_cache_as_full_as_it_is_said_to_be():
    model = windowed(build())
    reader = _Reader(model, text().reshape(-1))
    with torch.no_grad():
        reader.fill(50)
        before = F.log_softmax(model(torch.tensor([[1]]), cache=reader.cache).logits, -1)
        reader.rewind()
        for _ in range(3):
            reader.run(40)
            reader.rewind()
        assert reader.cache.length == 50
        torch.testing.assert_close(F.log_softmax(model(torch.tensor([[1]]), cache=reader.cache).logits, -1), before)


def test_contexts_below_one_are_refused():
    with pytest.raises(InputError, match="contexts=0,4"):
        decode_costs({"original": build()}, text()[0], (0, 4))


def test_text_for_caches_takes_kinds_in_turns():
    ids = {"a": torch.tensor([[1, 2], [3, 4]]), "b": torch.tensor([[5, 6]])}
    assert decode_text(ids).tolist() == [1, 2, 5, 6, 3, 4]


def test_layers_say_what_stands_in_them():
    model = build()
    rows = layer_rows(windowed(model), model, {1: difference(torch.ones(2, 3), torch.zeros(2, 3))})
    assert [(r.layer, r.changed, r.numbers) for r in rows] == [(0, False, 32), (1, True, 32)]
    assert "window=8" in rows[1].block and rows[0].alone is None and rows[1].alone is not None


def make_record() -> Record:
    model = build()
    new, probe = windowed(model), make_probe(texts(), copied=20, apart=(4,), prompt_tokens=5, sample_tokens=6)
    models = {"original": model, "window": new}
    costs = decode_costs(models, decode_text(probe.texts), (8, 16, 24), rounds=6, round_seconds=1e-4)
    old = text_losses(model, probe.texts)
    blocks = "standard[window=8,sinks=2]"
    choice = Choice(
        "window",
        blocks,
        "window",
        (1,),
        layer_rows(new, model),
        measures=measure(new, probe, Letters(), original=old, decode=costs["window"]),
        cpu_seconds={"fit": 0.5},
    )
    return Record(
        model="a tiny model",
        layers=2,
        d_model=32,
        texts=tuple(TextSet(kind, (f"{kind}.txt",), 240, 160, 160) for kind in KINDS),
        piece_length=40,
        first_token=False,
        budget_loss=0.05,
        budget_cache=None,
        context=24,
        original=measure(model, probe, Letters(), losses=old, decode=costs["original"]),
        choices=(choice, Choice("none", "tva", refused="'tva' cannot be fitted")),
    )


def test_a_record_comes_back_from_its_file(tmp_path):
    record = make_record()
    save_record(record, tmp_path)
    assert load_record(tmp_path) == record == load_record(tmp_path / "transplant.json")


def test_an_interval_over_one_piece_survives_the_file():
    found = to_json(make_record())
    found["choices"][0]["measures"]["above"]["all"]["half"] = None
    again = from_json(json.loads(json.dumps(found)))
    assert again.choices[0].measures is not None and again.choices[0].measures.above is not None
    assert math.isnan(again.choices[0].measures.above["all"].half)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema="blockyard.transplant/9"), "schema 'blockyard.transplant/9'"),
        (lambda r: r.pop("original"), "has no 'original'"),
        (lambda r: r.update(extra=1), "has 'extra', which is not known"),
        (lambda r: r["choices"][0].update(layers=["one"]), r"choices\[0\]: layers\[0\] is 'one', which is no int"),
        (lambda r: r["original"].update(loss=[1.0]), "original: loss is"),
        (lambda r: r["original"].update(parameters=True), "parameters is True, which is no int"),
        (lambda r: r.update(texts="verse"), "texts is 'verse'"),
    ],
    ids=["schema", "missing", "unknown", "element", "list for dict", "bool for int", "text for list"],
)
def test_what_is_no_record_is_refused_by_what_is_wrong(change, said):
    found = to_json(make_record())
    change(found)
    with pytest.raises(InputError, match=said):
        from_json(found)
