"""Positions for mixers that know none: who knows the order is found out by trying, and a model can learn positions."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blockyard.compare import measure
from blockyard.compare.match import size_of
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.generation.beam import beam_search
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.stream import generate_batch
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.models.order import knows_order, layer_knows_order, mixer_knows_order, order_note
from blockyard.nn.roles import roles
from blockyard.registry.register import implementation
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier
from blockyard.tasks.run import load_run, train_lm
from blockyard.training import checkpoint
from tests.fixtures.generation import PROMPT, build
from tests.fixtures.unordered_blocks import unordered

# The file, not the function of its name that the package offers.
comparing = importlib.import_module("blockyard.compare.compare")

# Attention that honours every argument and is told to know no positions: the model's are all there are.
BLIND = "standard[rope=none]"


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with unordered():
        yield


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Other shapes of the same products: rounding of float32 sums.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# Who knows the order


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("blocks", "known"),
    [
        ("standard", True),
        ("mla", True),
        ("tva", True),
        ("spectral", True),
        (BLIND, False),
        ("standard[rope=none,window=3]", True),  # near and far are a kind of order
        ("bare", False),
        ("by_argument", False),
        ("by_torchs_word", False),
        ("built_by_torchs_word", False),
        ("running", False),
        ("fading", True),
        ("table", True),  # although it starts as if it were not there
    ],
)
def test_a_mixer_knows_the_order_if_its_outputs_depend_on_it(blocks: str, known: bool, causal: bool) -> None:
    config = EncoderConfig(vocab_size=9, n_classes=2, blocks=blocks, causal=causal)
    assert layer_knows_order(config, config.layers[0], declared=False) is known


def test_the_register_says_who_knows_the_order() -> None:
    assert mixer_knows_order(implementation("attn", "bare")) is False
    assert mixer_knows_order(implementation("attn", "fading")) is True
    assert all(
        mixer_knows_order(implementation("attn", name)) for name in ("standard", "mla", "tva", "complex", "spectral")
    )


def test_trying_a_mixer_draws_no_random_numbers_of_the_program() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert not knows_order(LMConfig(vocab_size=9, blocks="bare", d_model=48))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_layer_that_knows_the_order_is_enough() -> None:
    assert LMConfig(vocab_size=9, blocks="bare").learns_positions
    assert not LMConfig(vocab_size=9, blocks="bare*3/standard").learns_positions


# Models as they were


@pytest.mark.parametrize("blocks", ["standard", BLIND, "mla", "tva", "spectral", "tva+vft", "standard/bare"])
def test_models_whose_mixers_know_the_order_are_bit_for_bit_what_they_were(blocks: str) -> None:
    states = []
    for positions in ("auto", "none"):
        torch.manual_seed(3)
        states.append(
            TransformerLM(LMConfig(9, blocks=blocks, d_model=32, n_layers=2, positions=positions)).state_dict()
        )
    assert states[0].keys() == states[1].keys() and "position_embeddings.weight" not in states[0]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


# Learned positions


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_learned_positions_starts_as_one_without_plus_sinusoids(tied: bool) -> None:
    states = []
    for positions in ("learned", "none"):
        torch.manual_seed(3)
        config = LMConfig(vocab_size=9, blocks="bare", d_model=10, n_heads=2, context=5, tied=tied, positions=positions)
        states.append(TransformerLM(config).state_dict())
    table = states[0].pop("position_embeddings.weight")
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1]) and len(states[0]) == len(states[1])
    scale = 10**-0.5 if tied else 1.0
    for place in range(5):
        for i in range(5):
            angle = place / 10_000 ** (2 * i / 10)
            assert table[place, i].item() == pytest.approx(scale * math.sin(angle), abs=1e-6)
            assert table[place, 5 + i].item() == pytest.approx(scale * math.cos(angle), abs=1e-6)


def naive(model: TransformerLM, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of one row, its vectors put together one by one."""
    table, places = model.token_embeddings.weight, model.position_embeddings.weight
    x = torch.stack([table[token] + places[place] for place, token in enumerate(ids)])[None]
    x, _ = model.through_blocks(x)
    return model.lm_head(x)[0]


def blind(**options: Any) -> TransformerLM:
    return build(blocks=BLIND, positions="learned", **options)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_learned_positions_equal_vectors_added_one_by_one(tied: bool) -> None:
    model = blind(tied=tied)
    close(model(torch.tensor([PROMPT])).logits[0], naive(model, PROMPT))
    # They matter: the same tokens in another order end elsewhere.
    turned = [*reversed(PROMPT[:-1]), PROMPT[-1]]
    assert (naive(model, turned)[-1] - naive(model, PROMPT)[-1]).abs().max() > 1e-2


@torch.no_grad()
def test_padded_rows_stand_where_they_stand_alone() -> None:
    model, short = blind(context=8), PROMPT[:3]
    # Wider than the context, of which no row needs more.
    ids = torch.tensor([[0] * 4 + PROMPT, [0] * 6 + short])
    mask = torch.tensor([[0] * 4 + [1] * 5, [0] * 6 + [1] * 3])
    logits = model(ids, padding_mask=mask).logits
    close(logits[0, 4:], naive(model, PROMPT))
    close(logits[1, 6:], naive(model, short))


@torch.no_grad()
def test_positions_go_on_where_a_cache_stands_whatever_path_it_took() -> None:
    model, ids = blind(), torch.tensor([PROMPT + PROMPT[::-1]])
    expected = naive(model, ids[0].tolist())
    for sizes in ([1] * 10, [4, 1, 5]):
        cache, at = model.new_cache(1), 0
        for size in sizes:
            close(model(ids[:, at : at + size], cache=cache).logits[0], expected[at : at + size])
            at += size
    cache.crop(3)
    point = cache.snapshot()
    model(torch.tensor([[7, 7]]), cache=cache)
    cache.rollback(point)
    close(model(ids[:, 3:], cache=cache).logits[0], expected[3:])


@torch.no_grad()
def test_padded_rows_go_on_from_their_own_place_in_a_cache() -> None:
    model, cache = blind(), None
    ids, mask = torch.tensor([PROMPT, [0, 0] + PROMPT[:3]]), torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    cache = model.new_cache(2)
    model(ids, padding_mask=mask[:, :5], cache=cache)
    cache.reorder(torch.tensor([1, 0]))
    last = model(torch.tensor([[8], [9]]), padding_mask=mask.flip(0), cache=cache).logits[:, -1]
    close(last[0], naive(model, [*PROMPT[:3], 8])[-1])
    close(last[1], naive(model, [*PROMPT, 9])[-1])


def test_generation_and_beams_with_a_cache_write_what_they_write_without() -> None:
    model, prompts = blind(context=12), [PROMPT, PROMPT[:2]]
    greedy = SamplingConfig(temperature=0)
    # Past the context, so that windows slide.
    written = [generate_batch(model, prompts, max_new_tokens=15, sampling=greedy, use_cache=c) for c in (True, False)]
    assert written[0] == written[1]
    found = [beam_search(model, prompts, max_new_tokens=5, beams=3, use_cache=c) for c in (True, False)]
    assert [[b.tokens for b in row] for row in found[0]] == [[b.tokens for b in row] for row in found[1]]


@torch.no_grad()
def test_explicit_positions_are_looked_up_and_asked_only_of_mixers_that_take_them() -> None:
    model, ids = build(blocks="bare", positions="learned"), torch.tensor([PROMPT])
    close(model(ids, positions=torch.arange(5)).logits, model(ids).logits)
    moved = model(ids, positions=torch.arange(5) + 3).logits
    assert (moved - model(ids).logits).abs().max() > 1e-3
    with pytest.raises(InputError, match="does not take positions"):
        build(blocks="bare", positions="none")(ids, positions=torch.arange(5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_ids": torch.zeros(1, 9, dtype=torch.long)},
        {"input_ids": torch.zeros(1, 9, dtype=torch.long), "padding_mask": torch.ones(1, 9)},
        {"input_ids": torch.zeros(1, 2, dtype=torch.long), "positions": torch.tensor([0, 8])},
    ],
    ids=["length", "padding", "positions"],
)
def test_more_than_the_table_holds_is_refused_in_a_line(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^position 8 is outside the 8 of model\.context.*longer context$"):
        blind(context=8)(**arguments)


@torch.no_grad()
def test_a_cache_beyond_the_table_is_refused() -> None:
    model = blind(context=8)
    cache = model.new_cache(1)
    model(torch.zeros(1, 8, dtype=torch.long), cache=cache)
    with pytest.raises(InputError, match="position 8 is outside the 8"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


def test_positions_count_as_parameters_are_embeddings_to_the_optimizer_and_cost_no_products() -> None:
    config = LMConfig(vocab_size=9, blocks="bare", d_model=32, n_layers=1, context=16)
    model, none = TransformerLM(config), TransformerLM(replace(config, positions="none"))
    assert model.cost(16).parameters == sum(p.numel() for p in model.parameters())
    assert model.cost(16).parameters - none.cost(16).parameters == 16 * 32
    assert model.cost(16).flops == none.cost(16).flops
    assert model.non_embedding_parameters == none.non_embedding_parameters
    assert size_of(config) == size_of(none.config)
    assert roles(model)["position_embeddings.weight"].kind == "embedding"


def test_an_unknown_word_for_positions_is_refused() -> None:
    with pytest.raises(InputError, match="positions='rope' should be auto, learned or none"):
        LMConfig(vocab_size=9, positions="rope")  # type: ignore[arg-type]


# How the model hides the future from mixers of other people's making


@pytest.mark.parametrize("blocks", ["bare", "by_argument", "by_torchs_word", "built_by_torchs_word", "running"])
@torch.no_grad()
def test_a_language_model_hides_the_future_and_a_classifier_shows_it(blocks: str) -> None:
    model, ids = build(blocks=blocks), torch.tensor([PROMPT, [*PROMPT[:-1], 7]])
    logits = model(ids).logits
    close(logits[0, :-1], logits[1, :-1])
    config = EncoderConfig(vocab_size=256, n_classes=2, blocks=blocks, d_model=16, n_heads=2, zero_init_outputs=False)
    encoder = TextClassifier(config).eval()
    states, _ = encoder.through_blocks(encoder.token_embeddings(ids))
    assert (states[0, 0] - states[1, 0]).abs().max() > 1e-5


# What a comparison says


def note(blocks: str, **options: Any) -> str:
    return order_note("mine", LMConfig(vocab_size=9, blocks=blocks, **options))


def test_a_choice_without_positions_is_noted_with_what_to_do() -> None:
    assert note("bare", positions="none").endswith(
        "and the model gives it none. That alone makes it worse where order matters; --model.positions learned gives "
        "it some."
    )
    assert "The model gives it learned ones (model.positions=auto)" in note("bare")
    # One's own choice is respected, and said all the same.
    assert "--model.positions learned" in note(BLIND)
    assert "The model gives it learned ones" in note(BLIND, positions="learned")


@pytest.mark.parametrize("blocks", [*(n for n in ("standard", "mla", "tva", "spectral")), "bare/standard", "fading"])
def test_nothing_is_noted_of_choices_that_know_the_order(blocks: str) -> None:
    assert note(blocks, positions="none") == ""


def test_a_mixer_that_cannot_be_tried_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes 3 and 4")

    monkeypatch.setattr("tests.fixtures.unordered_blocks.Running.forward", broken)
    monkeypatch.setattr("blockyard.models.order._tried", {})
    assert mixer_knows_order(implementation("attn", "running")) is None
    assert note("running", positions="none") == "" and not LMConfig(vocab_size=9, blocks="running").learns_positions


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny comparison of choices, in one folder."""
    for name, value in (("ROUND_SECONDS", 0.005), ("ROUNDS", 3), ("DECODE_ROUNDS", 1)):
        monkeypatch.setattr(measure, name, value)
    # The report without its figures, which take longer than all the rest.
    reports: list[Any] = []
    verdict = {"headline": ""}
    monkeypatch.setattr(comparing, "write_report", lambda report, out: reports.append(report | {"verdict": verdict}))
    monkeypatch.setattr(comparing, "load_report", lambda out: reports[-1])
    terms = {"budget_unit": "tokens", "budget_value": 16 * 64, "seeds": 1, "measure_memory": False}

    def compare(blocks: str, **model: Any) -> list[str]:
        shared = {name: group for name, group in groups(tmp_path, **model).items() if name != "attn"}
        return comparing.compare_lm(CompareConfig(blocks, **terms), shared, tmp_path / "out", show=False)["notes"]

    return compare


def test_a_comparison_notes_what_it_gave_and_goes_on_only_with_the_same(compared: Any, tmp_path: Path) -> None:
    notes = compared("standard;bare")
    assert order_note("bare", LMConfig(vocab_size=9, blocks="bare")) in notes
    assert not any(note.startswith("standard has no") for note in notes)
    with pytest.raises(InputError, match=r"trained with model\.positions=learned, and none is asked for now: give"):
        compared("standard;bare", positions="none")
    # The other choice comes to the same, and so it does where an older version did not name positions.
    (config,) = (tmp_path / "out" / "runs" / "standard").glob("*/config.yaml")
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "positions" not in line))
    compared("standard", positions="none")


# Run folders


def groups(tmp_path: Path, **model: Any) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(3000)))
    quiet = {"batch_size": 4, "eval_batches": 1, "compile": "off", "threads": 1, "progress": False, "save_every": 2}
    return {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, **model},
        "attn": {"impl": "bare"},
        "data": {"path": str(text), "cache_dir": str(tmp_path / "cache")},
        "train": {"steps": 2, **quiet},
    }


def test_a_run_with_learned_positions_is_loaded_and_generates(tmp_path: Path) -> None:
    folder = train_lm(groups(tmp_path), tmp_path / "run")
    trained = load_run(folder)
    assert trained.run.model.positions == "auto" and trained.model.position_embeddings is not None
    assert len(generate_batch(trained.model, [[1, 2, 3]], max_new_tokens=20)[0]) == 20


def test_a_run_from_before_positions_is_loaded_and_goes_on_without_any(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", groups(tmp_path)
    train_lm(groups(tmp_path, positions="none"), run)
    _forget_positions(run)
    assert load_run(run).model.position_embeddings is None
    more = {**asked, "train": {**asked["train"], "steps": 4}}
    train_lm(more, run, resume=True)
    trained = load_run(run)
    assert trained.model.position_embeddings is None and trained.run.model.positions == "none"


def _forget_positions(run: Path) -> None:
    """What the folder says of positions, taken out of its configuration and its checkpoints."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["model"]["positions"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        assert state["config"]["model"].pop("positions") == "none"
        state.pop(checkpoint.STATE_SUM)
        state[checkpoint.STATE_SUM] = checkpoint.state_digest(state)
        file.write_text(json.dumps(state))
