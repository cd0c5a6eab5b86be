"""Whole transplants on a tiny model: what they write, that they go on after a kill, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from blockyard.errors import InputError
from blockyard.pretrained import Pretrained, load_pretrained
from blockyard.tasks.run import load_run
from blockyard.text import ByteTokenizer
from blockyard.transplant import (
    Budget,
    HealSettings,
    OutputSettings,
    TransplantConfig,
    account,
    load_record,
    run_transplant,
)
from blockyard.transplant.state import TransplantState
from tests.transplant.test_transplant import build

WINDOW = "standard[window=4,sinks=1]"


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    """Times are not looked at here."""
    timed = partial(account.decode_costs, rounds=2, round_seconds=1e-4)
    monkeypatch.setattr(account, "decode_costs", timed)


@pytest.fixture
def transplanted(tiny, texts, sizes, tmp_path):
    """Runs a transplant into a folder of its own, or the one given."""

    def call(blocks, out=None, **terms):
        config = TransplantConfig(blocks, data=texts, text=sizes, **terms)
        return run_transplant(tiny, config, out or tmp_path / "out", show=False)

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder).model.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_one_choice_makes_the_folder_an_ordinary_run(transplanted, tiny, run, tmp_path):
    out = tmp_path / "out"
    record = transplanted("mla[kv_rank=12,rope_dim=4]", layers="0,2")
    choice = record.choices[0]
    assert (choice.run, choice.layers, choice.blocks) == (".", (0, 2), "mla[kv_rank=12,rope_dim=4]@0,2")
    model = load_run(out).model
    assert [spec.attn for spec in model.config.layers] == ["mla", "standard", "mla"]
    assert equal({n: t for n, t in model.state_dict().items() if "layers.1." in n},
                 {n: t for n, t in weights(tiny).items() if "layers.1." in n})  # fmt: skip
    assert load_record(out) == record and (out / "report.html").stat().st_size > 10_000
    assert set(choice.measures.loss) == {"vowels", "k"} and choice.measures.above["all"].tokens == 6 * 31
    assert choice.measures.decode[-1].cache_bytes < record.original.decode[-1].cache_bytes
    assert run("generate", str(out), "--tokens", "4", "--prompt", "a").status == 0


def test_several_choices_share_the_text_and_each_is_a_run(transplanted, tmp_path):
    record = transplanted(f"mla;{WINDOW};{WINDOW}@0&mla[kv_rank=8,rope_dim=4]@1", budget=Budget(cache=0.8, context=200))
    runs = [tmp_path / "out" / str(choice.run) for choice in record.choices]
    assert len(set(runs)) == 3 and all(load_run(run) for run in runs)
    allowed = 0.8 * record.original.decode[-1].cache_bytes
    assert all(choice.measures.decode[-1].cache_bytes <= allowed for choice in record.choices[:2])
    assert [len(choice.trials) > 0 for choice in record.choices] == [True, True, False]
    assert record.choices[1].rows[0].alone is not None


def test_published_methods_stand_beside_ours_and_latents_take_windows(transplanted, tmp_path):
    blocks = [
        "mla[kv_rank=12,rope_dim=8]",
        "mla[kv_rank=12,rope_dim=8,method=transmla]",
        "mla[kv_rank=20,method=palu]@0,2",
        "mla[kv_rank=12,rope_dim=8,window=4,sinks=1]@1",
    ]
    record = transplanted(";".join(blocks), layers="all")
    assert [choice.refused for choice in record.choices] == [None] * 4
    # The same widths fitted otherwise: other weights in a cache of the same size, and the method stays in the name.
    ours, theirs = (load_run(tmp_path / "out" / str(choice.run)).model for choice in record.choices[:2])
    assert not equal(ours.state_dict(), theirs.state_dict()) and ours.new_cache(1).bytes_per_token == (
        theirs.new_cache(1).bytes_per_token
    )
    assert record.choices[1].blocks == f"{blocks[1]}@0-2" and record.choices[2].layers == (0, 2)
    with pytest.raises(InputError, match="fitted to widths that are named, not auto"):
        transplanted("mla[kv_rank=auto,rope_dim=8,method=transmla]", tmp_path / "x", budget=Budget(loss=1.0))


def test_a_budget_of_loss_chooses_layers_by_the_selection_text_alone(transplanted):
    record = transplanted(WINDOW, budget=Budget(loss=9.0))
    choice = record.choices[0]
    # All fit, and the text that decided is not the one that is reported on.
    assert choice.layers == (0, 1, 2) and choice.trials[0].cost != choice.measures.above["all"]


def test_what_is_wrong_with_one_of_several_stands_in_the_record(transplanted):
    record = transplanted(f"mla;{WINDOW}", budget=Budget(cache=0.45, context=64))
    refused = [choice for choice in record.choices if choice.refused]
    assert len(refused) == 1 and "cannot be met" in refused[0].refused


def test_healing_is_part_of_it(transplanted, tmp_path):
    transplanted(WINDOW, tmp_path / "bare", layers="1")
    record = transplanted(WINDOW, layers="1", heal=HealSettings(tokens=96, length=16, points=1))
    curve = record.choices[0].healing
    assert [point.tokens for point in curve] == [0, 96] and set(curve[0].loss) == {"vowels", "k"}
    assert not equal(weights(tmp_path / "bare"), weights(tmp_path / "out"))


def test_a_model_with_learned_positions_is_asked_nothing_beyond_them(texts, sizes, tmp_path):
    form = "standard[n_kv_heads=2,qk_norm=false,rope=none]"
    model = build(form, vocab_size=256, positions="learned")
    origin = Pretrained(model, ByteTokenizer(), "blockyard", {}, "tiny", "float32", None)
    config = TransplantConfig(WINDOW, data=texts, text=sizes)
    record = run_transplant(origin, config, tmp_path / "out", show=False)
    assert record.context == 16 and [cost.context for cost in record.original.decode] == [16]
    with pytest.raises(InputError, match=r"budget\.context=17 .* beyond the 64 positions"):
        run_transplant(origin, replace(config, budget=Budget(loss=9.0, context=17)), tmp_path / "no", show=False)


def test_a_training_in_pieces_beyond_the_context_is_refused(transplanted, tmp_path):
    with pytest.raises(InputError, match=r"heal\.length=512 is beyond the model's context of 64"):
        transplanted(WINDOW, heal=HealSettings(tokens=1024))
    assert not (tmp_path / "out").exists()


def test_half_precision_is_not_trained_and_said_before_text_is_read(texts, sizes, tmp_path):
    origin = Pretrained(build().bfloat16(), ByteTokenizer(), "blockyard", {}, "tiny", "bfloat16", None)
    terms = TransplantConfig(WINDOW, data=texts, text=sizes, heal=HealSettings(tokens=96, length=16))
    with pytest.raises(InputError, match=r"bfloat16, which small steps do not move"):
        run_transplant(origin, terms, tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_a_model_in_half_precision_is_measured_so_also_when_gone_on_with(texts, sizes, tmp_path, monkeypatch):
    origin = Pretrained(build(vocab_size=256).bfloat16(), ByteTokenizer(), "blockyard", {}, "tiny", "bfloat16", None)
    again = partial(
        run_transplant, origin, TransplantConfig("mla[kv_rank=12,rope_dim=4]", data=texts, text=sizes), show=False
    )
    whole = again(tmp_path / "whole").choices[0].measures
    with monkeypatch.context() as stopped, pytest.raises(Killed):
        stopped.setattr(account, "decode_costs", killed)
        again(tmp_path / "out")
    found = again(tmp_path / "out").choices[0].measures
    assert found.above == whole.above and found.parameter_bytes == whole.parameter_bytes


def killed(*given, **named):
    raise Killed


def test_mixers_unlike_attention_are_trained_on_the_outputs_of_the_layers_that_are_named(transplanted, tmp_path):
    settings = OutputSettings(tokens=96, length=16)
    with pytest.raises(InputError, match="name them, as in --layers 4,14"):
        transplanted("spectral[window=8]", budget=Budget(loss=1.0), outputs=settings)
    record = transplanted(f"spectral[window=8]@1&{WINDOW}@0", outputs=settings)
    choice, mixers = record.choices[0], [spec.attn for spec in load_run(tmp_path / "out").model.config.layers]
    assert mixers == ["standard", "spectral", "standard"] and choice.layers == (0, 1)
    assert any("relative squared error" in note for note in choice.notes)
    both = transplanted(f"spectral[window=8]@1;{WINDOW}@0&spectral[window=8]@1", tmp_path / "both", outputs=settings)
    notes = [[note for note in each.notes if "squared error" in note] for each in both.choices]
    assert [each.refused for each in both.choices] == [None, None] and [len(told) for told in notes] == [1, 1]
    assert any("research" in warning for warning in record.warnings)


class Killed(BaseException):
    """What a kill is to a process: nothing is tidied up that a handler of errors would tidy."""


@pytest.mark.parametrize("after", [3, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 5, 9, 11, 12))])
def test_a_killed_transplant_ends_with_the_same_weights(transplanted, monkeypatch, tmp_path, after):
    terms = {"budget": Budget(loss=0.6), "heal": HealSettings(tokens=64, length=16, points=1)}
    whole = transplanted("mla", tmp_path / "whole", **terms)
    kept, keep = [], TransplantState.keep

    def dying(state, value, *names):
        if len(kept) == after:
            raise Killed
        kept.append(names)
        return keep(state, value, *names)

    with monkeypatch.context() as patch:
        patch.setattr(TransplantState, "keep", dying)
        with pytest.raises(Killed):
            transplanted("mla", **terms)
    again = transplanted("mla", **terms)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    assert again.choices[0].trials == whole.choices[0].trials
    assert again.choices[0].measures.loss == whole.choices[0].measures.loss


def test_the_same_words_again_measure_nothing_again(transplanted, monkeypatch):
    first = transplanted(WINDOW, layers="1")
    monkeypatch.setattr(TransplantState, "keep", lambda *given: pytest.fail("measured again"))
    assert transplanted(WINDOW, layers="1").choices[0].measures == first.choices[0].measures


def test_other_words_in_a_folder_with_a_run_are_refused(transplanted):
    transplanted(WINDOW, layers="1")
    with pytest.raises(InputError, match="holds a transplant on other terms: layers was '1', now '2'"):
        transplanted(WINDOW, layers="2")


def test_after_a_budget_that_could_not_be_met_another_goes_on_in_the_folder(transplanted, tmp_path):
    with pytest.raises(InputError, match=r"budget\.loss=1e-09 cannot be met"):
        transplanted(WINDOW, budget=Budget(loss=1e-9))
    assert transplanted(WINDOW, budget=Budget(loss=9.0)).choices[0].layers == (0, 1, 2)


@pytest.mark.parametrize(
    "blocks, terms, reason",
    [
        (WINDOW, {"layers": "3"}, "layers='3': the model has layers 0 to 2"),
        (WINDOW, {"layers": "auto"}, "give budget.loss .* or budget.cache"),
        ("mla", {}, "give budget.loss .* or budget.cache"),
        (WINDOW, {"layers": "1", "budget": Budget(loss=0.1)}, "leave the budget out"),
        ("mla[kv_rank=999,rope_dim=4]", {}, "kv_rank=999 should be .* at most 28"),
        ("standard[window=0]", {}, "window=0 should be at least 1"),
        ("mla[kv_rank=8,rope_dim=4,method=transmla,fold=1,fold=2]", {}, "fold stands twice"),
        ("standard[head_dim=10,v_dim=4]", {"layers": "1"}, "head_dim=10 should be even, at least 2 and at most 8"),
        ("vft[rank=99]", {}, "rank=99 should be"),
        ("tva", {}, "cannot be fitted"),
        (f"{WINDOW};{WINDOW}", {}, "twice"),
    ],
)
def test_bad_terms_are_refused_in_one_line_before_anything_is_written(transplanted, tmp_path, blocks, terms, reason):
    with pytest.raises(InputError, match=reason) as caught:
        transplanted(blocks, **terms)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_folder_that_holds_another_run_is_refused(transplanted, tiny):
    with pytest.raises(InputError, match="already holds a run"):
        transplanted(WINDOW, tiny, layers="1")


def test_layers_of_another_kind_are_refused_by_name(texts, sizes, tmp_path):
    model = build("standard[n_kv_heads=2]", n_layers=2, vocab_size=256)
    config = TransplantConfig("mla[kv_rank=8,rope_dim=4]", data=texts, text=sizes)
    with pytest.raises(InputError, match="brings no tokenizer"):
        run_transplant(model, config, tmp_path / "out", show=False)


def test_a_module_with_its_tokenizer_is_taken_as_it_is(tiny, texts, sizes, tmp_path):
    model = load_run(tiny).model
    config = TransplantConfig(WINDOW, layers="1", data=texts, text=sizes)
    record = run_transplant(model, config, tmp_path / "out", tokenizer=tiny / "tokenizer", show=False)
    assert record.command == "" and load_run(tmp_path / "out").model.layers[1].attn.window == 4


def test_the_command_says_what_it_did_and_refuses_in_one_line(run, tiny, texts, tmp_path):
    words = ["transplant", str(tiny), "--blocks", WINDOW, "--data.path", ",".join(texts.path)]
    sizes = ["--text.calibrate", "256", "--text.select", "384", "--text.report", "192", "--text.length", "32"]
    done = run(
        *words, *sizes, "--data.cache_dir", str(texts.cache_dir), "--budget.loss", "9", "--out", str(tmp_path / "o")
    )
    assert done.status == 0 and f"{WINDOW}@0-2: vowels" in done.out and done.out.splitlines()[-1] == str(tmp_path / "o")
    assert load_record(tmp_path / "o").command.startswith(f"blockyard transplant {tiny} --blocks")
    for more, reason in [
        ([], "where to?"),
        (["--out", str(tmp_path / "p"), "--heal.lr", "0.1"], "--heal.lr belongs to a healing"),
        (["--out", str(tmp_path / "p"), "--layers", "7"], "layers='7'"),
        (["--out", str(tmp_path / "p"), "--layers", "1", "--text.length", "999"], "text.length=999"),
    ]:
        refused = run(*words, *more)
        assert refused.status == 2 and refused.out == "" and refused.err.count("\n") == 1 and reason in refused.err


def test_an_imported_model_keeps_where_it_came_from(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    source = tmp_path / "hf"
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    coder = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    coder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = tokenizers.decoders.ByteLevel()
    coder.train_from_iterator(["aeiou klmn"], trainer)
    coder.save(str(source / "tokenizer.json"))
    terms = TransplantConfig(WINDOW, layers="1", data=texts)
    terms = replace(terms, text=replace(terms.text, calibrate=256, select=384, report=192, length=32))
    run_transplant(source, terms, tmp_path / "out", show=False)
    assert (tmp_path / "out" / "origin.json").is_file()
    new, old = load_run(tmp_path / "out").model, load_pretrained(source, check=False).model
    assert equal(new.state_dict(), old.state_dict()) and new.layers[1].attn.window == 4
