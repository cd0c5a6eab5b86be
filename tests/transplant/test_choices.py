"""Choices as they are written: forms, their layers, and widths left open."""

from __future__ import annotations

import pytest

from blockyard.errors import InputError
from blockyard.transplant import TransplantConfig
from blockyard.transplant.choices import Part, forms_of, narrowest, numbers, read_choice, read_layers, written
from tests.transplant.test_transplant import build

WINDOW = "standard[window=8,sinks=2]"


@pytest.mark.parametrize(
    "text, layers",
    [("all", (0, 1, 2, 3)), ("auto", "auto"), ("2", (2,)), ("0-1,3", (0, 1, 3)), ("3,1,1-2", (1, 2, 3))],
)
def test_layers_are_read(text, layers):
    assert read_layers(text, 4) == layers


@pytest.mark.parametrize("text", ["", "4", "3-1", "2-4", "a", "1,,2", "-1", "1:3"])
def test_layers_that_are_not_there_are_refused(text):
    with pytest.raises(InputError, match="layers="):
        read_layers(text, 4)


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2, 5), (1, 3, 5), (2, 3)])
def test_layers_are_written_as_they_are_read(layers):
    assert read_layers(numbers(layers), 6) == layers


def test_a_choice_is_written_as_it_is_read():
    parts = [("mla[kv_rank=8,rope_dim=4]", (0, 1)), (WINDOW, (3,)), (WINDOW, ())]
    name = written(parts)
    assert name == f"mla[kv_rank=8,rope_dim=4]@0-1&{WINDOW}@3"
    assert [(p.form, p.layers) for p in read_choice(name, "all", 4)] == parts[:2]


def test_parts_that_name_no_layers_have_those_of_the_command():
    assert read_choice(WINDOW, "1-2", 4)[0].layers == (1, 2)
    assert [str(p) for p in read_choice(f"mla@0&{WINDOW}@1-3", "auto", 4)] == ["mla@0", f"{WINDOW}@1-3"]


@pytest.mark.parametrize(
    "name, reason",
    [
        (f"{WINDOW}@0&{WINDOW}@0-1", "two forms into layer 0"),
        (f"{WINDOW}@auto&mla@auto", "one part may be left"),
        (f"mla&{WINDOW}", "one part may be left"),
        (f"{WINDOW}@", "should be a mixer or FFN"),
        ("@1", "should be a mixer or FFN"),
        (f"{WINDOW}@1@2", "should be a mixer or FFN"),
        ("spectral@auto", "name them"),
        ("spectrla@1", "spectrla"),
        ("tva@1", "the same attention"),
        ("standard[window=auto]", "window=auto is none of the widths"),
        ("vft[rank=auto]", "rank=auto is none of the widths"),
        ("mla[kv_rank=8]", "needs kv_rank and rope_dim"),
        (f"{WINDOW}/mla", "one mixer or FFN"),
    ],
)
def test_what_is_no_choice_is_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        read_choice(name, "auto", 4)


def test_choices_are_told_apart_by_semicolons_and_stand_once():
    assert TransplantConfig(f" mla ; {WINDOW} ;").names == ["mla", WINDOW]
    for blocks in ("mla; mla", ";", "mla;;mla"):
        with pytest.raises(InputError, match="blocks"):
            _ = TransplantConfig(blocks).names


def test_open_widths_come_from_the_largest_cache_to_the_smallest():
    model = build()
    caches = []
    for form in forms_of(Part("mla", "auto"), model, 0):
        rank, rope = (int(word.rstrip("]").split("=")[1]) for word in form.split(","))
        caches.append(rank + rope)
    # Two key heads of 8 + 8 numbers: 32 in all.
    assert caches == sorted(caches, reverse=True) and max(caches) < 32 and len(caches) >= 5
    heads = forms_of(Part("standard[n_kv_heads=1,head_dim=auto,v_dim=auto]", "auto"), model, 0)
    assert heads[0] == "standard[n_kv_heads=1,head_dim=12,v_dim=16]"
    assert all("rope_dim=8" in form for form in forms_of(Part("mla[kv_rank=auto,rope_dim=8]", "auto"), model, 0))
    assert forms_of(Part(WINDOW, "auto"), model, 0) == [WINDOW]
    assert narrowest("mla") == "mla[kv_rank=1,rope_dim=2]"


def test_a_latent_is_no_wider_than_a_model_whose_query_heads_have_keys_of_their_own():
    model = build("standard[qk_norm=false]")
    found = forms_of(Part("mla", (0, 1)), model, 0)
    assert found[0] == "mla[kv_rank=32,rope_dim=12]" and "mla[kv_rank=29,rope_dim=8]" in found
