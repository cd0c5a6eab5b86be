"""Mixtures of experts in training: balance, checkpointing, compilation, resume, generation, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockyard.compare.output import write_report
from blockyard.compare.results import expert_loads
from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.report.render import charts_of
from blockyard.tasks.given import WORDS, Setting
from blockyard.tasks.given import resolve as resolve_words
from blockyard.tasks.groups import train_groups
from blockyard.tasks.lm.report import LMParts
from blockyard.tasks.run import load_run, train_lm
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.auxiliary import statistics_row
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import Decisions
from blockyard.training.distributed import join_ranks
from blockyard.training.engine import Engine
from tests.fixtures.reports import synthetic_report

E = 8
VOCABULARY, CONTEXT = 32, 16


class ToyTask:
    """Next tokens of random walks, for a model of one or two layers."""

    def __init__(self, blocks: str, config: TrainConfig, skewed: bool = False) -> None:
        torch.manual_seed(0)
        self.model = TransformerLM(
            LMConfig(
                VOCABULARY, blocks=blocks, d_model=32, n_layers=1, n_heads=2, context=CONTEXT, zero_init_outputs=False
            )
        )
        if skewed:
            # The first two experts' rows point along the mean input: nearly everything goes there.
            router = self.model.layers[0].ffn.router.linear.weight
            with torch.no_grad():
                self.model.layers[0].ln2.weight[0] = 4.0
                self.model.token_embeddings.weight[:, 0] = 3.0
                router[:2, 0] += 1.0
        self.config = config
        self.tokens_per_step, self.flops_per_step, self.fingerprint = config.batch_size * CONTEXT, 1, {}

    def batch(self, step, rows):
        generator = torch.Generator().manual_seed(step)
        steps = torch.randint(-2, 3, (self.config.batch_size, CONTEXT + 1), generator=generator)
        ids = (steps.cumsum(1) + 7 * torch.arange(self.config.batch_size)[:, None]) % VOCABULARY
        return {"input_ids": ids[rows, :-1], "targets": ids[rows, 1:]}

    def loss(self, model, batch):
        from blockyard.tasks.lm.task import LMTask

        return LMTask.loss(self, model, batch)


def engine_of(blocks: str, skewed: bool = False, **options) -> Engine:
    config = TrainConfig(**{"steps": 200, "batch_size": 16, "optimizer": "adamw", "lr": 0.003, "warmup": 5, **options})
    task = ToyTask(blocks, config, skewed)
    return Engine(task, config, join_ranks("cpu"), Decisions("fp32", "highest", "no"))


BALANCED = {
    "loss": ("moe[expert.d_ff=16]", {"aux_loss_weight": 0.2}),
    "bias": ("moe[balance=bias,bias_rate=0.01,expert.d_ff=16]", {}),
    "sigmoid bias": ("moe[scoring=sigmoid,balance=bias,bias_rate=0.01,expert.d_ff=16]", {}),
    "sigmoid loss": ("moe[scoring=sigmoid,expert.d_ff=16]", {"aux_loss_weight": 0.2}),
}


def load_after(blocks: str, **options) -> float:
    """max / mean load over the last ten of 200 steps that begin with a skewed router."""
    engine = engine_of(blocks, skewed=True, **options)
    loads = [engine.step(step).stats["layers.0/load"] for step in range(200)]
    first, last = loads[0], torch.stack(loads[-10:]).sum(0)
    assert first.max() / first.mean() > 2.5, "the run does not begin skewed"
    return float(last.max() / last.mean())


@pytest.mark.parametrize(("blocks", "options"), BALANCED.values(), ids=BALANCED.keys())
def test_every_balancing_method_rights_a_skewed_router(blocks, options):
    assert load_after(blocks, **options) <= 1.2


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_without_balancing_a_skewed_router_stays_skewed(scoring):
    assert load_after(f"moe[balance=none,scoring={scoring},expert.d_ff=16]") > 1.5


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"checkpoint_activations": True}], ids=str)
def test_passes_and_checkpointing_change_neither_load_nor_bias(options):
    blocks = "moe[balance=bias,bias_rate=0.01,expert.d_ff=16]"
    plain, other = engine_of(blocks), engine_of(blocks, **options)
    for step in range(4):
        a, b = plain.step(step), other.step(step)
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        # Logits of products of other shapes: a token between two experts may fall to the other one.
        assert (a.stats["layers.0/load"] - b.stats["layers.0/load"]).abs().sum() <= 2
        assert a.stats["layers.0/load"].sum() == 16 * CONTEXT * 2
    bias = plain.model.layers[0].ffn.router.bias
    assert torch.allclose(bias, other.model.layers[0].ffn.router.bias, atol=1e-7) and bias.abs().max() > 0


def test_a_skipped_batch_moves_no_bias():
    engine = engine_of("moe[balance=bias,expert.d_ff=16]", on_non_finite="skip")
    with torch.no_grad():
        engine.model.layers[0].ffn.router.linear.weight[3, 3] = float("nan")
    assert engine.step(0).skipped
    assert not engine.model.layers[0].ffn.router.bias.any()


def test_compiled_blocks_compute_the_same():
    blocks = "moe[balance=bias,expert.d_ff=16,capacity=1.5]"
    plain, compiled = engine_of(blocks), engine_of(blocks)
    torch.compiler.reset()
    for layer in compiled.model.layers:
        layer.compile(dynamic=False, backend="aot_eager")
    for step in range(3):
        a, b = plain.step(step), compiled.step(step)
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        # Logits of products of other shapes: a token between two experts may fall to the other one.
        assert (a.stats["layers.0/load"] - b.stats["layers.0/load"]).abs().sum() <= 2


GROUPS = {
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16},
    "ffn": {"impl": "moe", "d_ff": 16},
    "moe": {"n_experts": 4, "balance": "bias", "bias_rate": 0.01},
    "train": {
        "steps": 6, "batch_size": 4, "precision": "fp32", "compile": "off", "eval_every": 3, "eval_batches": 1,
        "save_every": 3, "log_every": 1, "progress": False, "threads": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    text = folder / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(4000)))
    groups = {**GROUPS, "data": {"path": str(text), "cache_dir": str(folder / "cache")}}
    train_lm(groups, folder / "run")
    return folder / "run"


def test_balance_is_in_the_metrics(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        for layer in ("layers.0/load", "layers.1/load"):
            assert len(row[layer]) == 4 and sum(row[layer]) == pytest.approx(1, abs=1e-3)
        assert row["max_load"] == pytest.approx(4 * max(*row["layers.0/load"], *row["layers.1/load"]), abs=1e-3)
        assert "loss/z" in row
    assert set(expert_loads(rows)) == {"layers.0", "layers.1"}


def test_a_trained_mixture_is_loaded_with_its_bias_and_generates(run):
    model, _, _ = load_run(run)
    assert model.layers[0].ffn.router.bias.abs().max() > 0.005
    ids = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        full, cache = model(ids).logits, model.new_cache(2)
        pieces = [model(ids[:, :5], cache=cache).logits]
        pieces += [model(ids[:, t : t + 1], cache=cache).logits for t in range(5, 9)]
    assert torch.allclose(torch.cat(pieces, 1), full, atol=1e-5)


def test_bf16_training_lowers_the_loss():
    engine = engine_of("moe[expert.d_ff=16]", steps=40)
    engine._autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    losses = [engine.step(step).loss for step in range(40)]
    assert losses[-1] < losses[0] - 0.5


def test_statistics_become_shares_and_the_largest_of_all_layers():
    stats = {"a/load": torch.tensor([1.0, 3.0]), "b/load": torch.tensor([2.0, 2.0]), "loss/z": torch.tensor(0.5)}
    row = statistics_row(stats)
    assert row == {"a/load": [0.25, 0.75], "b/load": [0.5, 0.5], "max_load": 1.5, "loss/z": 0.5}


def test_the_report_draws_the_experts_loads(tmp_path):
    report = synthetic_report()
    for run in report["choices"][1]["runs"]:
        run["load"] = {"layers.0": [0.5, 0.25, 0.25, 0.0], "layers.1": [0.25] * 4}
    files = write_report(report, tmp_path)
    assert "png:expert-load-1" in files and files["png:expert-load-1"].stat().st_size > 5000
    page = files["html"].read_text()
    assert "How busy the experts are" in page and "Largest: 2.00" in page
    assert [c.name for c in charts_of(json.loads(files["json"].read_text()), LMParts()) if c.group == "experts"] == [
        "expert-load-1"
    ]


# The options of experts, the same from Python, YAML and words.


@pytest.mark.parametrize(
    ("groups", "layer"),
    [
        ({"ffn": {"impl": "moe", "d_ff": 12}}, "standard+moe[expert.d_ff=12]"),
        ({"vft": {"rank": 4}, "ffn": {"impl": "moe"}, "moe": {"expert": "vft"}}, "moe[expert=vft,expert.rank=4]"),
        ({"model": {"pattern": "moe[expert=vft]"}, "vft": {"rank": 4}}, "moe[expert=vft,expert.rank=4]"),
        ({"model": {"pattern": "moe[expert=vft,expert.rank=3]"}, "vft": {"rank": 4}}, "moe[expert=vft,expert.rank=3]"),
    ],
    ids=str,
)
def test_groups_and_brackets_say_the_same_of_experts(groups, layer):
    found, expected = resolve(groups), LMConfig(1, blocks=layer)
    assert found.model.layers == expected.layers
    assert resolve(as_groups(found)).model.layers == expected.layers


def test_an_option_that_only_the_expert_has_stays_the_experts_on_the_way_through_the_settings():
    groups = {"model": {"pattern": "tva[rank=8]+moe[expert=vft]"}}
    once = resolve(groups)
    assert resolve(as_groups(once)).model.layers == once.model.layers


def words(*pairs: tuple[str, str]):
    """Settings as the command line gives them, resolved."""
    given = [Setting(*flag.split("."), value, f"--{flag}", is_word=True, layer=WORDS) for flag, value in pairs]
    return resolve_words(train_groups("lm"), given)


def test_a_selected_experts_family_counts_as_selected_on_the_command_line():
    settings = words(("ffn.impl", "moe"), ("moe.expert", "vft"), ("moe.n_experts", "4"), ("vft.rank", "4"))
    layer = resolve(settings).model.layers[0]
    assert layer.ffn_options["expert.rank"] == 4 and layer.ffn_options["n_experts"] == 4
    settings = words(("ffn.impl", "moe"), ("ffn.d_ff", "512"))
    assert resolve(settings).model.layers[0].ffn_options["expert.d_ff"] == 512
    settings = words(("model.pattern", "moe[expert=vft]"), ("vft.rank", "4"))
    assert resolve(settings).model.layers[0].ffn_options["expert.rank"] == 4


def test_options_of_an_expert_that_is_not_selected_are_refused_on_the_command_line():
    with pytest.raises(InputError, match=r"--vft.rank: 'rank' is an option of: tva, .*vft.*selected are"):
        words(("ffn.impl", "moe"), ("vft.rank", "4"))
    with pytest.raises(InputError, match=r"--moe.expert: no FFN named 'swigl'. Did you mean 'swiglu'"):
        words(("ffn.impl", "moe"), ("moe.expert", "swigl"))
