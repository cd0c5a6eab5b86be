"""The family of transformers: stored and loaded, generating by every way, refusing what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockyard import InputError, TransformerLM
from tests.fixtures.hf_models import CHOICES, VOCABULARY, family_model, plain_model, prompts

transformers = pytest.importorskip("transformers")

from blockyard.hf import BlockyardConfig, BlockyardForCausalLM, wrap  # noqa: E402

GREEDY = {"max_new_tokens": 10, "do_sample": False}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_model_comes_back_from_sharded_files_on_the_meta_device(choice: str, tmp_path: Path):
    model = family_model(choice)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and not list(tmp_path.glob("*.bin"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, BlockyardForCausalLM) and not again.training
    assert torch.equal(again(prompts()).logits, model(prompts()).logits)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.token_embeddings.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half(prompts()).logits.float(), model(prompts()).logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("choice", CHOICES)
def test_text_is_the_same_with_a_cache_without_one_padded_and_in_a_room_of_its_own(choice: str):
    model, ids = family_model(choice), prompts()
    greedy = model.generate(ids, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(ids, **GREEDY), greedy)
    assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), greedy)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    assert torch.equal(model.generate(padded, attention_mask=(padded != 0).long(), **GREEDY)[:, 3:], greedy)
    beams = {"num_beams": 3, "num_return_sequences": 2, **GREEDY}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, use_cache=False, **beams))


@pytest.mark.parametrize("choice", CHOICES)
def test_assisted_text_is_greedy_text(choice: str):
    """Tokens are taken back again and again: the draft is another model."""
    model, draft, ids = family_model(choice), family_model(choice, seed=1), prompts(1)
    greedy = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, assistant_model=draft, **GREEDY), greedy)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **GREEDY), greedy)


def test_samples_are_those_of_the_seed():
    model = family_model("spectral")
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(model.generate(prompts(), max_new_tokens=8, do_sample=True, top_p=0.9, temperature=0.8))
    assert torch.equal(*found)


def test_an_empty_cache_made_without_the_configuration_is_ours_from_then_on():
    model, cache = family_model("spectral"), transformers.DynamicCache()
    with torch.no_grad():
        model(prompts()[:, :8], past_key_values=cache)
        step = model(prompts()[:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(step[:, -1], model(prompts()).logits[:, -1], atol=1e-5, rtol=1e-4)


def test_generation_goes_on_from_a_cache_that_was_kept():
    model, ids = family_model("hybrid"), prompts()
    cache = transformers.DynamicCache(config=model.config)
    first = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    second = model.generate(first, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert torch.equal(second, model.generate(ids, **GREEDY))


@pytest.mark.parametrize("choice", ["standard", "spectral", "window"])
def test_rows_of_a_cache_are_chosen_and_repeated(choice: str):
    model, ids = family_model(choice), prompts(3)
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        assert (cache.batch_size, cache.get_seq_length()) == (4, 8)
        rows = ids[[2, 2, 0, 0]]
        step = model(rows[:, 8:], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(step, model(rows).logits[:, -1], atol=1e-5, rtol=1e-4)
        cache.reset()
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(model(rows, past_key_values=cache).logits, model(rows).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("choice", ["spectral", "hybrid", "standard"])
def test_any_number_of_tokens_of_the_last_piece_is_taken_back(choice: str):
    model, ids = family_model(choice), prompts(1, 20)
    with torch.no_grad():
        whole = model(ids).logits
        for back in range(6):
            cache = transformers.DynamicCache(config=model.config)
            cache.activate_past_recording()
            model(ids[:, :10], past_key_values=cache)
            wrong = torch.cat([ids[:, 10 : 15 - back], torch.ones(1, back, dtype=torch.long)], dim=1)
            model(wrong, past_key_values=cache)
            cache.crop(-back)
            assert cache.get_seq_length() == 15 - back
            found = model(ids[:, 15 - back :], past_key_values=cache).logits
            torch.testing.assert_close(found, whole[:, 15 - back :], atol=1e-5, rtol=1e-4)


def test_a_running_state_that_was_not_recorded_is_not_cut():
    model = family_model("spectral")
    with torch.no_grad():
        cache = model(prompts(), use_cache=True).past_key_values
    assert not cache.is_croppable
    with pytest.raises(InputError, match="running state of 9 tokens and cannot go back to 7"):
        cache.crop(-2)
    cache.crop(9)
    assert cache.get_seq_length() == 9


def test_labels_are_shifted_as_transformers_has_it():
    model, ids = family_model("standard"), prompts()
    labels = ids.clone()
    labels[0, :4] = -100
    logits = model(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    items = torch.tensor(7)
    summed = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=items).loss, summed / 7)
    assert torch.equal(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    assert isinstance(model(ids, return_dict=False), tuple)


def test_losses_of_blocks_are_added_in_training_alone():
    model, ids = family_model("moe"), prompts()
    scored = model(ids, labels=ids)
    model.train()
    trained = model(ids, labels=ids)
    torch.testing.assert_close(trained.loss, scored.loss + trained.aux_loss)
    assert float(trained.aux_loss.detach()) > 0


def test_training_keeps_no_cache():
    model = family_model("standard").train()
    out = model(prompts(), labels=prompts())
    assert out.past_key_values is None
    out.loss.backward()


def test_the_switch_recomputes_blocks_and_changes_no_gradient():
    model, ids = family_model("tva+vft").train(), prompts()
    model(ids, labels=ids).loss.backward()
    before = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.model.checkpoint_activations
    model(ids, labels=ids).loss.backward()
    for grad, parameter in zip(before, model.parameters()):
        torch.testing.assert_close(parameter.grad, grad, atol=1e-6, rtol=1e-5)
    model.gradient_checkpointing_disable()
    assert not model.model.checkpoint_activations


def test_the_configuration_says_what_transformers_asks_and_stores_the_architecture(tmp_path: Path):
    config = BlockyardConfig.of(plain_model("hybrid").config, aux_loss_weight=0.5)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["architecture"]["blocks"] == CHOICES["hybrid"] and "layer_types" not in stored
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert again.language_model() == config.language_model() and again.aux_loss_weight == 0.5
    assert (again.vocab_size, again.hidden_size, again.num_hidden_layers) == (VOCABULARY, 32, 2)
    # As transformers' Trainer reads it when it goes on.
    transformers.PreTrainedConfig.from_pretrained(tmp_path)
    assert BlockyardConfig().architecture == {}


def test_a_tied_matrix_is_stored_once_and_stays_tied(tmp_path: Path):
    model = family_model("standard", tied=True)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.model.lm_head.weight is again.model.token_embeddings.weight
    assert torch.equal(again(prompts()).logits, model(prompts()).logits)
    again.resize_token_embeddings(60)
    assert again.model.lm_head.weight is again.model.token_embeddings.weight


def test_what_a_file_lacks_starts_as_in_a_new_model(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = family_model("spectral")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = [name for name in state if "gate.base" in name]
    save_file({k: v for k, v in state.items() if k not in lost}, tmp_path / "model.safetensors", {"format": "pt"})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    fresh = plain_model("spectral")
    for name in lost:
        # A fixed start, not a random one.
        found = again.get_parameter(name)
        assert torch.equal(found, fresh.get_parameter(name.removeprefix("model.")))


def test_a_pipeline_writes_text():
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    )
    write = transformers.pipeline("text-generation", model=family_model("hybrid"), tokenizer=tokenizer)
    found = write(["w3 w4 w5", "w7"], batch_size=2, **GREEDY)
    alone = write("w7", **GREEDY)
    assert found[1][0]["generated_text"] == alone[0]["generated_text"]
    assert alone[0]["generated_text"].count("w") == 11


REFUSED = {
    "foreign cache": (
        lambda m: m(prompts()[:, -1:], past_key_values=filled()),
        r"DynamicCache of other layers.*would see the last token alone; use DynamicCache\(config=model\.config\)",
    ),
    "quantised cache": (
        lambda m: m(prompts(), past_key_values=transformers.Cache(layers=[transformers.cache_utils.DynamicLayer()])),
        "of other layers than this model's",
    ),
    "another batch": (
        lambda m: m(prompts(3), past_key_values=m(prompts(), use_cache=True).past_key_values),
        "the cache holds 2 sequences, input_ids 3",
    ),
    "mask of pairs": (
        lambda m: m(prompts(), attention_mask=torch.ones(2, 1, 9, 9)),
        r"attention_mask has shape \(2, 1, 9, 9\), expected \(2, 9\)",
    ),
    "embeddings": (lambda m: m(inputs_embeds=torch.zeros(2, 9, 32)), "give input_ids, no inputs_embeds"),
    "attentions": (lambda m: m(prompts(), output_attentions=True), "output_attentions=True: this family returns none"),
    "offloaded": (
        lambda m: m(prompts(), past_key_values=offloaded(m)),
        "is not offloaded",
    ),
}


def filled() -> transformers.DynamicCache:
    """As another model leaves it."""
    cache = transformers.DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(2, 4, 9, 8), torch.zeros(2, 4, 9, 8), layer)
    return cache


def offloaded(model: BlockyardForCausalLM) -> transformers.DynamicCache:
    cache = transformers.DynamicCache(config=model.config)
    cache.offloading = True
    return cache


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_do_is_refused_in_one_line(what: str):
    call, line = REFUSED[what]
    with torch.no_grad(), pytest.raises(InputError, match=line):
        call(family_model("spectral"))


def test_pickles_are_not_read(tmp_path: Path):
    model = family_model("standard")
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="use_safetensors=False"):
        BlockyardForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_file_of_another_architecture_is_refused_by_name(tmp_path: Path):
    family_model("standard").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for change, line in (
        ({"blocks": "standrad"}, "no attention named 'standrad'. Did you mean 'standard'"),
        ({"n_layres": 3}, r"the configuration's architecture has no option 'n_layres' \(did you mean 'n_layers'"),
        ({"d_model": "wide"}, "d_model"),
    ):
        architecture = {**stored["architecture"], **change}
        (tmp_path / "config.json").write_text(json.dumps({**stored, "architecture": architecture}))
        with pytest.raises(InputError, match=line):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_whose_configuration_does_not_tell_its_state_is_refused():
    from blockyard.vein import use_rank

    model = plain_model("tva+vft")
    use_rank(model, 3)
    with pytest.raises(
        InputError, match=r"layers\.0\.ffn\.vein\.active is .* and missing by the model's configuration"
    ):
        wrap(model)
    with pytest.raises(InputError, match="a Linear has no counterpart"):
        wrap(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_wrapping_shares_weights_and_gives_the_model_back():
    model = plain_model("mla")
    wrapped = wrap(model)
    assert wrapped.model is model and isinstance(wrapped.model, TransformerLM)
    assert torch.equal(wrapped(prompts()).logits, model(prompts()).logits)


@pytest.mark.slow
def test_importing_the_package_is_enough_for_the_auto_classes(tmp_path: Path):
    family_model("standard").save_pretrained(tmp_path)
    code = (
        "import blockyard.hf, sys; from transformers import AutoModelForCausalLM as A; "
        f"print(type(A.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "BlockyardForCausalLM", done.stderr


@pytest.mark.parametrize("choice", CHOICES)
def test_sequences_told_apart_by_their_positions_are_read_apart(choice: str):
    """As `DataCollatorWithFlattening` lays them out, one row of all."""
    model, ids = family_model(choice), prompts()
    features = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in (ids[0], ids[1, :5], ids[1, 2:])]
    flat = transformers.DataCollatorWithFlattening()(features)
    assert flat["position_ids"].shape[0] == 1
    out = model(**flat)
    alone = [model(torch.tensor([f["input_ids"]]), labels=torch.tensor([f["labels"]])) for f in features]
    torch.testing.assert_close(out.logits, torch.cat([each.logits for each in alone], dim=1), atol=2e-5, rtol=1e-4)
    targets = [len(f["labels"]) - 1 for f in features]
    losses = sum(each.loss * count for each, count in zip(alone, targets)) / sum(targets)
    torch.testing.assert_close(out.loss, losses, atol=1e-5, rtol=1e-5)


def test_positions_that_say_nothing_new_change_nothing_and_others_are_refused():
    model, ids = family_model("standard"), prompts()
    keep = torch.ones_like(ids)
    keep[0, :3] = 0
    padded = (keep.cumsum(-1) - 1).clamp(min=0)
    same = model(ids, attention_mask=keep).logits
    assert torch.equal(model(ids, attention_mask=keep, position_ids=padded).logits, same)
    assert torch.equal(model(ids, position_ids=torch.arange(ids.shape[1])[None]).logits, model(ids).logits)
    cut = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]])[:, : ids.shape[1]]
    for wrong in ({"attention_mask": keep}, {"use_cache": True}, {"past_key_values": transformers.DynamicCache()}):
        with pytest.raises(InputError, match="position_ids"):
            model(ids, position_ids=cut, **wrong)
    with pytest.raises(InputError, match="position_ids are neither"):
        model(ids, position_ids=torch.arange(ids.shape[1])[None] + 1)
