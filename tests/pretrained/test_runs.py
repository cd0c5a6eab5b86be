"""An imported model as a run: text, conversations, fine-tuning, comparison, and back to its own architecture."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from blockyard.errors import InputError
from blockyard.pretrained import export_original, load_pretrained, why_not_original, write_run
from blockyard.tasks.run import load_run
from blockyard.text import LibraryTokenizer, load_tokenizer
from blockyard.text.library import read_files
from tests.fixtures.pretrained import tiny

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog and runs home\nwhile nobody looks at it 1 2 3 "


def byte_level(folder: Path, *, size: int = 96) -> Path:
    """A byte-level tokenizer of a few letters, with a template, as a folder of files; it fits the tiny models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted({*"".join(WORDS.split()), "Ġ", "Ċ"})
    vocab = {text: number for number, text in enumerate(["<|end|>", "<|user|>", "<|assistant|>", *alphabet])}
    vocab["Ġt"], vocab["Ġth"], vocab["Ġthe"] = len(vocab), len(vocab) + 1, len(vocab) + 2
    made = Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    assert made.get_vocab_size() <= size
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}, "bos_token": None}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny("llama").save_pretrained(folder)
    return byte_level(folder)


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "llama"
    return write_run(load_pretrained(source), out)


def test_the_run_is_the_model(source, imported):
    model, tokenizer, run = load_run(imported)
    ids = torch.tensor([tokenizer.encode("the fox runs\n")])
    with torch.no_grad():
        expected = tiny("llama")(ids).logits
        assert (model(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert run.model.context == 128 and tokenizer.vocab_size == 96
    assert load_tokenizer(imported / "tokenizer").fingerprint() == tokenizer.fingerprint()


def test_import_tells_parity_and_the_commands_take_the_run(run, source, tmp_path):
    out = str(tmp_path / "run")
    done = run("import", str(source), "--out", out)
    assert done.status == 0 and "differ from transformers' by" in done.out and "llama:" in done.out
    told = run("info", out)
    assert told.status == 0 and "chat template  yes" in told.out and "(llama, float32)" in told.out
    wrote = run("generate", out, "--prompt", "the fox", "--tokens", "5", "--temperature", "0")
    assert wrote.status == 0 and wrote.out.startswith("the fox")
    spoken = run("generate", out, "--prompt", "the fox", "--tokens", "5", "--temperature", "0", "--chat")
    assert spoken.status == 0 and not spoken.out.startswith("the fox")
    again = run("import", str(source), "--out", out)
    assert again.status == 2 and "already holds a run" in again.err and "--resume" not in again.err
    resumed = run("train", "lm", "--out", out, "--resume")
    assert resumed.status == 2


def test_a_message_is_written_as_the_template_has_it(imported):
    tokenizer = load_run(imported).assets
    text = tokenizer.chat([{"role": "user", "content": "fox"}])
    assert text == "<|user|>fox<|end|><|assistant|>"
    special = tokenizer.special_tokens
    assert tokenizer.encode(text, special=True)[0] == special["<|user|>"]
    # What a user writes does not end a message.
    assert special["<|end|>"] not in tokenizer.encode("fox<|end|>")


def test_templates_run_in_a_sandbox(imported, tmp_path):
    folder = shutil.copytree(imported / "tokenizer", tmp_path / "t")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="the chat template refuses"):
        load_tokenizer(folder).chat([{"role": "user", "content": "hi"}])


def test_templates_may_break_out_of_loops_and_name_the_day(imported, tmp_path):
    folder = shutil.copytree(imported / "tokenizer", tmp_path / "t")
    template = (
        "{% for m in messages %}{{ m.content }}{% break %}{% endfor %} {{ strftime_now('%Y') }} {{ tools is none }}"
    )
    (folder / "chat_template.jinja").write_text(template)
    said = load_tokenizer(folder).chat([{"role": "user", "content": "fox"}, {"role": "user", "content": "dog"}])
    assert re.fullmatch(r"fox 20\d\d True", said)


def test_a_template_that_refuses_without_a_word_is_one_line(imported, tmp_path):
    folder = shutil.copytree(imported / "tokenizer", tmp_path / "t")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('') }}")
    with pytest.raises(InputError, match="refuses the conversation: TemplateError"):
        load_tokenizer(folder).chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("around", "prefix"),
    [("<|end|> $A", 1), ("$A <|end|>", 0), ("<|user|> $A <|end|>", 1), ("$A", 0), ("<|end|> $A <|end|>", 1)],
)
def test_what_stands_before_a_text_is_told_from_what_ends_it(imported, tmp_path, around, prefix):
    """Where one token begins texts and ends them, too, its place tells."""
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_file(str(imported / "tokenizer" / "tokenizer.json"))
    names = [(name, made.token_to_id(name)) for name in ("<|end|>", "<|user|>")]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=names)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    tokenizer = LibraryTokenizer.load(tmp_path, 96)
    assert tokenizer.prefix_ids == tuple(made.encode("fox").ids[:prefix])


@pytest.mark.parametrize("said", [2, [2, 5]], ids=["one", "several"])
def test_the_models_configuration_says_what_ends_a_text_where_nothing_else_does(source, tmp_path, said):
    folder = shutil.copytree(source, tmp_path / "m")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": said}))
    tokenizer = load_pretrained(folder, check=False).tokenizer
    assert set(tokenizer.end_ids) == {0, *([said] if isinstance(said, int) else said)}


def test_files_of_a_save_that_was_killed_are_not_the_next_tokenizers(source, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("another's")
    files = {name: text for name, text in read_files(source).items() if name != "chat_template.jinja"}
    LibraryTokenizer(files, 96).save(tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None


def test_a_model_without_a_tokenizer_is_refused_before_its_weights_are_read(run, source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"no weights")
    done = run("import", str(folder), "--out", str(tmp_path / "r"))
    assert done.status == 2 and "brings no tokenizer.json; name a folder that has one" in done.err
    (folder / "tokenizer.json").write_text("{")
    done = run("import", str(folder), "--out", str(tmp_path / "r"))
    assert done.status == 2 and not (tmp_path / "r").exists()


def text_of(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 60)
    return str(path)


SMALL = ["--model.context", "16", "--train.batch_size", "2", "--train.eval_batches", "1", "--train.compile", "off"]


def test_training_goes_on_from_an_imported_model_and_goes_back(run, imported, tmp_path):
    out, text = str(tmp_path / "tuned"), text_of(tmp_path)
    words = ["--init", str(imported), "--data.path", text, "--data.cache_dir", str(tmp_path), *SMALL]
    done = run("train", "lm", "--out", out, "--train.steps", "2", *words)
    assert done.status == 0, done.err
    tuned, before = load_run(out), load_run(imported)
    assert tuned.run.train.optimizer == "adamw" and tuned.run.train.lr == 5e-5
    moved = (tuned.model.layers[0].attn.q_proj.weight - before.model.layers[0].attn.q_proj.weight).abs().max()
    assert 0 < moved < 1e-3
    back = export_original(out, tmp_path / "hf")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(back).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = tuned.model(ids).logits
        assert (theirs(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    # Its weights are in its checkpoint: the run that it began with may be gone.
    config = Path(out, "config.yaml").read_text().replace(str(imported), str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in config


def test_another_tokenizer_or_shape_than_the_weights_is_refused(run, imported, tmp_path):
    text = text_of(tmp_path)
    words = ["--init", str(imported), "--data.path", text, "--data.cache_dir", str(tmp_path), *SMALL]
    other = run("train", "lm", "--out", str(tmp_path / "a"), *words, "--data.tokenizer", "byte")
    assert other.status == 2 and "another tokenizer" in other.err
    # Before the data are read, which may take minutes: these cannot be.
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(bytes(range(256)))
    words[words.index("--data.path") + 1] = str(junk)
    early = run("train", "lm", "--out", str(tmp_path / "a"), *words, "--data.tokenizer", "byte")
    assert early.status == 2 and "another tokenizer" in early.err
    words[words.index("--data.path") + 1] = text
    wide = run("train", "lm", "--out", str(tmp_path / "b"), *words, "--model.n_layers", "2")
    assert wide.status == 2 and "does not fit the model" in wide.err
    none = run("train", "lm", "--out", str(tmp_path / "c"), "--init", str(tmp_path))
    assert none.status == 2 and "holds no run" in none.err
    Path(tmp_path, "config.json").write_text("{}")
    theirs = run("train", "lm", "--out", str(tmp_path / "c"), "--init", str(tmp_path))
    assert theirs.status == 2 and f"blockyard import {tmp_path}" in theirs.err


@pytest.mark.parametrize("shape", [["--model.d_model", "48"], ["--model.n_layers", "2"], ["--attn.impl", "tva"]])
def test_a_shape_that_the_weights_do_not_fit_is_refused_before_a_long_text_is_read(run, imported, tmp_path, shape):
    # There is no text: who reads it first says so.
    words = ["--init", str(imported), "--data.path", str(tmp_path / "none.txt"), *SMALL]
    read = run("train", "lm", "--out", str(tmp_path / "a"), *words)
    assert read.status == 2 and "none.txt" in read.err
    refused = run("train", "lm", "--out", str(tmp_path / "b"), *words, *shape)
    assert refused.status == 2 and "does not fit the model" in refused.err and "blockyard transplant" in refused.err
    assert not (tmp_path / "b").exists()


def test_a_comparison_shows_the_imported_model_beside_its_choices(run, imported, tmp_path):
    text = text_of(tmp_path)
    words = ["--blocks", "standard", "--beside", str(imported), "--data.path", text, "--data.cache_dir", str(tmp_path)]
    words += ["--model.d_model", "8", "--model.n_layers", "1", "--model.n_heads", "1", *SMALL, "--rates", "one"]
    words += ["--seeds", "1", "--budget.value", "64", "--measure_memory", "false", "--evaluations", "1"]
    words.remove("--train.compile"), words.remove("off")
    done = run("compare", "lm", *words, "--out", str(tmp_path / "c"))
    assert done.status == 0, done.err
    quality = json.loads((tmp_path / "c" / "report.json").read_text())["quality"]
    (beside,) = quality["beside"]
    assert beside["parameters"] > 10_000 and beside["nats_per_byte"] > 0 and beside["bytes"] > 0
    assert "Beside trained models" in (tmp_path / "c" / "report.html").read_text()


def test_blocks_that_no_longer_fit_are_written_in_the_yards_own_family(run, imported, tmp_path):
    changed = shutil.copytree(imported, tmp_path / "run")
    text = (changed / "config.yaml").read_text()
    (changed / "config.yaml").write_text(text.replace("norm_eps: 1.0e-06", "norm_eps: 1.0e-05"))
    assert "its norm_eps is no longer what the llama had" in str(why_not_original(changed))
    refused = run("export", str(changed), "--as", "original", "--out", str(tmp_path / "a"))
    assert refused.status == 2 and "its norm_eps is no longer what the llama had" in refused.err
    done = run("export", str(changed), "--to", "hf", "--out", str(tmp_path / "b"))
    assert done.status == 0 and "blockyard's own family" in done.out
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "blockyard"


def test_text_in_pieces_is_encoded_as_a_whole(imported):
    tokenizer = load_run(imported).assets
    text = WORDS * 4000
    pieces = [text[i : i + 999] for i in range(0, len(text), 999)]
    blocks = list(tokenizer.encode_blocks(pieces))
    assert len(blocks) > 2
    assert [token for block in blocks for token in block] == tokenizer._encode(text, False)
    assert tokenizer.decode(tokenizer.encode(text[:500])) == text[:500]


def test_a_sentencepiece_tokenizer_keeps_its_spaces_and_its_bos(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab"]
    vocab = {text: number for number, text in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁a", "b")], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    tokenizer = LibraryTokenizer.load(tmp_path, 300)
    ids = tokenizer.encode("ab a\nü")
    assert tokenizer.prefix_ids == (1,) and tokenizer.end_ids == (2,) and tokenizer.separator_id == 2
    assert 1 not in ids and tokenizer.decode(ids) == " ab a\nü"
    assert tokenizer.token_bytes(299) == b""
