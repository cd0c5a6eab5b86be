"""Language models over rows of documents: logits and gradients are those of one document at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockyard
from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM, build_lm
from blockyard.models.order import randomise
from blockyard.nn.dropout import set_dropout_keys
from blockyard.nn.segments import Segments
from blockyard.registry.register import entries

# Every registered causal mixer of a real stream, the pairs that are one block, hybrids and mixtures.
MIXERS = [e.name for e in entries("attn") if e.traits.causal and not e.traits.complex_valued]
CHOICES = [
    *MIXERS,
    "tva+vft",
    "standard[window=3,sinks=1]",
    "spectral[window=4,chunk=2]/standard",
    "mla/tva+vft",
    "standard+moe[n_experts=4]",
    "spectral/mla+moe[n_experts=4,balance=bias,scoring=sigmoid]",
]
NUMBERS = torch.tensor([[0] * 7 + [1] + [2] * 9 + [-1] * 3, [0] * 20, [0] * 2 + [1] * 2 + [2] * 16])
LENGTH = NUMBERS.shape[1]


def model_of(blocks: str, **options: Any) -> TransformerLM:
    config = LMConfig(vocab_size=11, d_model=16, n_heads=2, n_layers=2, context=LENGTH, blocks=blocks, **options)
    model = build_lm(config, 0).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        randomise(model)
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids, targets = (torch.randint(11, NUMBERS.shape, generator=generator) for _ in range(2))
    return ids, targets.where(NUMBERS >= 0, -100)


def documents() -> list[tuple[int, slice]]:
    """Row and places of every document, filling left out."""
    found = []
    for row, numbers in enumerate(NUMBERS.tolist()):
        for number in sorted({n for n in numbers if n >= 0}):
            first = numbers.index(number)
            found.append((row, slice(first, first + numbers.count(number))))
    return found


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found) if g is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("choice", CHOICES)
def test_logits_and_gradients_are_those_of_one_document_at_a_time(choice: str, checkpointing: bool) -> None:
    if checkpointing and choice not in ("standard", "tva+vft", CHOICES[-1]):
        pytest.skip("recomputed with one of each kind of block")
    model, (ids, targets) = model_of(choice), batch()
    model.checkpoint_activations = checkpointing
    out = model(ids, targets=targets, segments=NUMBERS)
    total = torch.zeros((), dtype=torch.float64)
    for row, part in documents():
        alone = model(ids[row : row + 1, part], targets=targets[row : row + 1, part])
        # What is drawn apart in float32, such as a spectrum's filter, rounds as that does.
        torch.testing.assert_close(out.logits[row : row + 1, part], alone.logits, rtol=1e-6, atol=1e-6)
        assert alone.loss is not None
        total = total + alone.loss * (part.stop - part.start)
    assert out.loss is not None
    count = int((targets >= 0).sum())
    torch.testing.assert_close(out.loss * count, total, rtol=1e-9, atol=1e-9)
    found, expected = gradients(model, out.loss * count), gradients(model, total)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("form", [{"norm_position": "post"}, {"norm_position": "branch"}, {"parallel": True}], ids=str)
def test_norms_in_other_places_change_nothing_of_it(form: dict[str, Any]) -> None:
    model, (ids, _) = model_of("standard", **form), batch()
    out = model(ids, segments=NUMBERS).logits
    for row, part in documents():
        torch.testing.assert_close(out[row : row + 1, part], model(ids[row : row + 1, part]).logits)


def test_learned_positions_begin_anew_with_every_document() -> None:
    model, (ids, _) = model_of("standard[rope=none]", positions="learned"), batch()
    out = model(ids, segments=NUMBERS).logits
    for row, part in documents():
        torch.testing.assert_close(out[row : row + 1, part], model(ids[row : row + 1, part]).logits)


@pytest.mark.parametrize("choice", ["standard", "mla", "tva+vft"])
@pytest.mark.parametrize("scaling", ["dynamic[factor=4,original=4]", "longrope[original=8,short={},long={}]"])
def test_frequencies_that_go_by_length_go_by_the_document_s_own(choice: str, scaling: str) -> None:
    # Padded to a longer neighbour, a document would be turned as a longer row is.
    pairs = 4 if choice == "standard" else 2
    scaling = scaling.format(" ".join(["1"] * pairs), " ".join(["3"] * pairs))
    model, (ids, _) = model_of(choice, rope_scaling=scaling), batch()
    out = model(ids, segments=NUMBERS).logits
    for row, part in documents():
        torch.testing.assert_close(out[row : row + 1, part], model(ids[row : row + 1, part]).logits)
    with pytest.raises(InputError, match=r"Segments\(numbers, alike=\d\)"):
        model(ids, segments=Segments(NUMBERS))


def test_experts_count_no_filling() -> None:
    model, (ids, targets) = model_of("standard+moe[n_experts=4]"), batch()
    other = ids.where(NUMBERS >= 0, (ids + 1) % 11)
    found = [model(each, targets=targets, segments=NUMBERS) for each in (ids, other)]
    first, second = (each.aux for each in found)
    assert first is not None and second is not None
    assert first["losses"].keys() == second["losses"].keys() != set()
    for name, value in first["losses"].items():
        torch.testing.assert_close(value, second["losses"][name])
    assert torch.equal(first["stats"]["layers.0"]["load"], second["stats"]["layers.0"]["load"])
    assert int(first["stats"]["layers.0"]["load"].sum()) == 2 * int((NUMBERS >= 0).sum())


def test_dropout_is_a_function_of_the_rows_keys() -> None:
    """Every mixer's masks are drawn for documents, however many a group has."""
    model, (ids, _) = model_of("standard/tva+vft", dropout=0.3).train(), batch()
    found = []
    for first in (0, 0, 3):
        set_dropout_keys(model, torch.arange(first, first + 3))
        found.append(model(ids, segments=NUMBERS).logits)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], model.eval()(ids, segments=NUMBERS).logits)


class Averaged(nn.Module):
    """A mixer of a user's own that knows nothing of documents, and hides the future only where it is told to."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.scores = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        scores = self.scores(x) @ x.mT
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ x


def test_a_mixer_of_a_user_s_own_is_called_with_one_document_a_row() -> None:
    blockyard.register_attn("averaged_here", group="averaged_here")(Averaged)
    model, (ids, _) = model_of("averaged_here+standard"), batch()
    out = model(ids, segments=NUMBERS).logits
    for row, part in documents():
        torch.testing.assert_close(out[row : row + 1, part], model(ids[row : row + 1, part]).logits)


class Whole(nn.Module):
    """A block of a user's own, mixer and FFN in one."""

    def forward(self, x: Tensor, *, padding_mask: Any = None, positions: Any = None, cache: Any = None) -> Any:
        return x + x.cumsum(1), None


def test_what_cannot_be_had_is_refused() -> None:
    model, (ids, _) = model_of("standard"), batch()
    for name, value in {
        "padding_mask": torch.ones_like(ids),
        "positions": torch.arange(LENGTH),
        "cache": model.new_cache(3),
    }.items():
        with pytest.raises(InputError, match=f"segments go without {name}"):
            model(ids, segments=NUMBERS, **{name: value})
    with pytest.raises(InputError, match=r"segments has shape \(3, 19\), input_ids \(3, 20\)"):
        model(ids, segments=NUMBERS[:, 1:])
    model.layers[1] = Whole()
    with pytest.raises(InputError, match="Whole does not take segments"):
        model(ids, segments=NUMBERS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("choice", CHOICES)
def test_documents_on_a_device_give_what_they_give_alone(choice: str) -> None:
    model, (ids, _) = model_of(choice).float().cuda(), batch()
    out = model(ids.cuda(), segments=NUMBERS.cuda()).logits
    for row, part in documents():
        alone = model(ids[row : row + 1, part].cuda()).logits
        torch.testing.assert_close(out[row : row + 1, part], alone, rtol=1e-4, atol=1e-4)
