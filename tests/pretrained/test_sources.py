"""Files from anywhere: what is missing, damaged, malicious or too large is one line, and nothing leaves its folder."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.pretrained import load_pretrained
from tests.fixtures.pretrained import tiny

pytest.importorskip("transformers")

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(folder / "one")
    tiny("llama").save_pretrained(folder / "many", max_shard_size="40KB")
    return folder


@pytest.fixture
def one(saved, tmp_path):
    return shutil.copytree(saved / "one", tmp_path / "one")


@pytest.fixture
def many(saved, tmp_path):
    return shutil.copytree(saved / "many", tmp_path / "many")


def refusal(folder):
    with pytest.raises(InputError) as refused:
        load_pretrained(folder, check=False)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_missing_files_are_named(one, many, tmp_path):
    assert "is no folder with a config.json" in refusal(tmp_path / "nothing")
    (one / "config.json").unlink()
    assert "cannot read" in refusal(one) and "config.json" in refusal(one)
    next(many.glob("*.safetensors")).unlink()
    assert "safetensors" in refusal(many)


def test_pickles_are_refused_and_not_read(one):
    (one / SINGLE).unlink()
    (one / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert "a pickle that could run code" in refusal(one)


@pytest.mark.parametrize(
    "name", ["../one/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "a\\b.safetensors"]
)
def test_an_index_cannot_lead_out_of_its_folder(many, name):
    index = json.loads((many / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (many / INDEX).write_text(json.dumps(index))
    assert "which is no safetensors file of this folder" in refusal(many)


def test_an_index_that_disagrees_with_its_files_is_refused(many):
    index = json.loads((many / INDEX).read_text())
    places = index["weight_map"]
    elsewhere = next(name for name in sorted(set(places.values())) if name != places["lm_head.weight"])
    (many / INDEX).write_text(json.dumps({"weight_map": {**places, "lm_head.weight": elsewhere}}))
    assert "does not hold it" in refusal(many)
    # One that shares its file with others.
    shared = next(key for key, name in places.items() if list(places.values()).count(name) > 1)
    (many / INDEX).write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if k != shared}}))
    assert f"does not mention {shared}" in refusal(many)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "[" * 5000], ids=str)
def test_a_damaged_index_is_one_line(many, text):
    (many / INDEX).write_text(text)
    assert INDEX in refusal(many)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 2**30}, {"num_hidden_layers": 2**30}, {"vocab_size": 2**31 - 1}, {"num_attention_heads": 10**9},
        {"intermediate_size": 2**31 - 1}, {"max_position_embeddings": 2**31 - 1}, {"head_dim": 2**30},
        {"vocab_size": 10**30}, {"hidden_size": -1}, {"hidden_size": 1.5}, {"rms_norm_eps": 0}, {"rms_norm_eps": "x"},
        {"rope_parameters": {"rope_theta": 0}}, {"rope_parameters": {"rope_theta": float("inf")}},
        {"rope_parameters": 3}, {"num_key_value_heads": 10**9},
    ],
    ids=str,
)  # fmt: skip
def test_absurd_sizes_are_refused_before_anything_is_built(one, change):
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, **change}))
    if change == {"max_position_embeddings": 2**31 - 1}:
        # A length costs nothing until a text is so long.
        assert load_pretrained(one, check=False).model.config.context == 2**31 - 1
    else:
        refusal(one)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(one):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (one / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert "is no whole file of tensors" in refusal(one)
    (one / SINGLE).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "is no whole file of tensors" in refusal(one)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_and_scribbled_files_are_one_line_or_other_numbers(saved, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("scribbled")
    shutil.copytree(saved / "one", folder, dirs_exist_ok=True)
    raw = bytearray((folder / SINGLE).read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        place = data.draw(st.integers(0, 600))
        raw[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    (folder / SINGLE).write_bytes(bytes(raw))
    try:
        load_pretrained(folder, check=False)
    except InputError as error:
        assert "\n" not in str(error)


def test_weights_that_are_no_floating_numbers_are_refused(one):
    from safetensors.torch import load_file, save_file

    weights = load_file(one / SINGLE)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, one / SINGLE)
    assert "model.norm.weight has type torch.int8" in refusal(one)


def test_quantised_weights_are_refused(one):
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    assert "the weights are quantised (fp8)" in refusal(one)


def test_a_module_that_is_no_model_of_transformers_is_refused():
    with pytest.raises(InputError, match="is no PreTrainedModel"):
        load_pretrained(torch.nn.Linear(2, 2))
