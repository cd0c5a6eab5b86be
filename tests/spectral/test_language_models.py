"""Spectral mixing in language models: refused when it sees ahead, trains, generates, hybrid or pure."""

import math

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.generation import SamplingConfig, generate_batch
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.registry.register import Traits, register_attn
from blockyard.spectral.training import param_groups


def model(blocks, layers=2, **options):
    torch.manual_seed(0)
    config = LMConfig(32, blocks=blocks, d_model=32, n_layers=layers, n_heads=2, context=48, **options)
    return TransformerLM(config)


SPECTRAL = "spectral[window=32,chunk=8]"


def test_a_mixer_without_a_causal_form_is_refused_with_the_option_it_lacks():
    @register_attn("toy_encoder_only", traits=Traits(causal=False))
    class EncoderOnly(nn.Module):
        def __init__(self, d_model: int):
            super().__init__()

        def forward(self, x):
            return x.flip(1)

    with pytest.raises(InputError, match=r"'toy_encoder_only' cannot be causal.*causal=True.*predict"):
        model("toy_encoder_only")


def test_the_encoder_form_cannot_be_had_in_a_language_model():
    with pytest.raises(InputError, match="no option 'causal'"):
        model("spectral[causal=false]")
    with pytest.raises(InputError, match=r"pooling_type='dct' is an option of the encoder form.*causal=False"):
        model("spectral[pooling_type=dct]")


def train_on_random_tokens(lm, steps):
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        ids = torch.randint(32, (16, 33))
        loss = lm(ids[:, :-1], targets=ids[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ids = torch.randint(32, (64, 33))
    with torch.no_grad():
        return losses, lm(ids[:, :-1], targets=ids[:, 1:]).loss.item()


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_random_tokens_stay_at_the_logarithm_of_the_vocabulary(gate):
    lm = model(f"spectral[window=16,chunk=4,gate={gate},num_buckets=4,d_gate=16]+swiglu", layers=1)
    losses, held_out = train_on_random_tokens(lm, 200)
    assert min(sum(losses[i : i + 20]) / 20 for i in range(0, 200, 20)) > math.log(32) - 0.02
    assert held_out > math.log(32) - 0.02


def test_the_floor_finds_a_leak():
    # The same test on a model that sees one token ahead: it must fall far below, or the test above proves nothing.
    lm = model("standard", layers=1)
    forward = lm.layers[0].attn.forward
    lm.layers[0].attn.forward = lambda x, **arguments: forward(x, causal=False, **arguments)
    _, held_out = train_on_random_tokens(lm, 200)
    assert held_out < math.log(32) - 0.1


@pytest.mark.parametrize("blocks", [SPECTRAL, f"{SPECTRAL}*3/standard"])
def test_generation_with_the_cache_equals_generation_without(blocks):
    lm = model(blocks, layers=4, zero_init_outputs=False)
    prompts = [[1, 2, 3], list(range(20)), [7] * 11]
    greedy = SamplingConfig(temperature=0)
    # 60 tokens: past the window of 32 and past the context of 48.
    cached = generate_batch(lm, prompts, max_new_tokens=60, sampling=greedy)
    assert cached == generate_batch(lm, prompts, max_new_tokens=60, sampling=greedy, use_cache=False)
    alone = [generate_batch(lm, [prompt], max_new_tokens=60, sampling=greedy)[0] for prompt in prompts]
    assert cached == alone


def test_speculation_rolls_back_a_hybrid():
    lm = model(f"{SPECTRAL}/standard", zero_init_outputs=False).eval()
    ids, wrong = torch.randint(32, (2, 40)), torch.randint(32, (2, 5))
    with torch.no_grad():
        cache = lm.new_cache(2)
        lm(ids[:, :35], cache=cache)
        point = cache.snapshot()
        lm(wrong, cache=cache)
        cache.rollback(point)
        out = lm(ids[:, 35:], cache=cache).logits
        torch.testing.assert_close(out, lm(ids).logits[:, 35:], atol=1e-4, rtol=1e-4)


def test_weight_decay_of_the_gate_can_be_set_apart():
    from blockyard.training.config import TrainConfig
    from blockyard.training.optim import Optimizers

    lm = model(SPECTRAL)
    optimizers = Optimizers(lm, TrainConfig(optimizer="adamw", weight_decay=0.01, gate_weight_decay=0.3))
    decays = {
        name: group["weight_decay"]
        for member in optimizers.members
        for group in member.param_groups
        for name in (optimizers.names[p] for p in group["params"])
    }
    assert decays["layers.0.attn.gate.out_weight"] == decays["layers.1.attn.gate.hidden_weight"] == 0.3
    assert decays["layers.0.attn.v_proj.weight"] == 0.01 and decays["layers.0.attn.gate.base"] == 0


def test_parameter_groups_for_a_loop_of_ones_own():
    lm = model(SPECTRAL)
    groups = {group["name"]: group for group in param_groups(lm, weight_decay=0.02, gate_weight_decay=0.2)}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "main": 0.02, "gate": 0.2, "undecayed": 0.0,
    }  # fmt: skip
    assert {id(p) for p in groups["gate"]["params"]} == {
        id(p) for layer in lm.layers for p in (layer.attn.gate.hidden_weight, layer.attn.gate.out_weight)
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(lm.parameters()))
    torch.optim.AdamW(groups.values())
