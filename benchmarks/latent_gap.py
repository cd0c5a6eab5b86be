"""Why latent attention (mla) loses to standard attention under Muon: from one to the other step by step, and cures.

    python benchmarks/latent_gap.py --out latent_gap.json [--only NAME,…] [--seeds 3] [--tokens 300000]

The terms are the demo's (src/blockyard/compare/demo.yaml): a language model on the source of Python's standard library,
equal in parameters to standard attention, one rate for all, equal tokens, paired seeds; without compilation. What is no
option of the library is a `TrialAttention` of this file. Runs that the file holds already are kept, so that a list can
grow. With AdamW, whose rate here is far from the recipe's, each choice runs at the best rate of a ladder of factors
of 2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.compare.match import match
from blockyard.compare.plan import at_rate, base_run, watched
from blockyard.latent import LatentAttention
from blockyard.machine.processor import processor_name
from blockyard.nn import Linear, RMSNorm, Role, attend
from blockyard.nn.rotary import rotate
from blockyard.protocol.costs import Cost, measured_cost
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import Traits, register_attn
from blockyard.report.stats import interval
from blockyard.tasks.kind import Run
from blockyard.training.trainer import Trainer

GROUPS = {
    "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "context": 64},
    "train": {"threads": 1, "device": "cpu", "compile": "off"},
    "data": {"max_bytes": 2_000_000},
}
Start = Literal["random", "twice", "identity"]
# Factors on AdamW's rate; the ladder grows while its best is an end of it.
FACTORS = (1.0, 2.0, 4.0)


@register_attn("mla-trial", group="trial", traits=Traits(causal=True, order=True))
class TrialAttention(LatentAttention):
    """Latent attention in training, with one thing or another done differently.

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads.
        kv_rank: as in `LatentAttention`.
        rope_dim: as in `LatentAttention`.
        causal: as in `LatentAttention`.
        rope_theta: as in `LatentAttention`.
        direct: what is made from x by one full matrix, instead of from the latent.
        norms: RMS norms with gains before the rotation: queries (per head), heads (queries, and whole keys per head),
            tokens (queries, the rotary key, and all heads' other keys together), parts (of queries and keys, rotary and
            other, each by itself), latent (where they meet when absorbed: queries W_ukᵀ q beside their rotary part,
            and the rotary key beside the latent, which is normalised anyway).
        ups: the up-projections to Muon: head (one matrix per head), or flat (one for all heads).
        logit_limit: after each step, heads with larger logits have their query and key maps shrunk (QK-Clip, arXiv
            2507.20534); None = no limit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        kv_rank: int | None = None,
        rope_dim: int | None = None,
        causal: bool = False,
        rope_theta: float = 10_000.0,
        direct: Literal["nothing", "keys", "values"] = "nothing",
        norms: Literal["none", "queries", "heads", "tokens", "parts", "latent"] = "none",
        ups: Literal["head", "flat"] = "head",
        logit_limit: float | None = None,
    ) -> None:
        super().__init__(d_model, n_heads, kv_rank=kv_rank, rope_dim=rope_dim, causal=causal, rope_theta=rope_theta)
        self.norms, self.direct, self.logit_limit = norms, direct, logit_limit
        nope, rope = self.nope_dim, self.rope_dim
        widths = {
            "none": {},
            "queries": {"q": nope + rope},
            "heads": {"q": nope + rope, "k": nope + rope},
            "tokens": {"q": nope + rope, "k": n_heads * nope, "k_rope": rope},
            "latent": {"q": self.kv_rank + rope, "k_rope": rope},
            "parts": {"q": nope, "q_rope": rope, "k": nope, "k_rope": rope},
        }[norms]
        self.gains = nn.ModuleDict({name: RMSNorm(width, 1e-6) for name, width in widths.items()})
        self.direct_proj = None if direct == "nothing" else Linear(d_model, d_model)
        if ups == "flat":
            self.k_up, self.v_up = (nn.Parameter(up.detach().flatten(0, 1)) for up in (self.k_up, self.v_up))
        if direct != "nothing":
            self.register_parameter("k_up" if direct == "keys" else "v_up", None)

    def parameter_roles(self) -> dict[str, Role]:
        return {"k_up": Role("matrix"), "v_up": Role("matrix")}

    def forward(self, x: Tensor, *, causal: bool | None = None, **_: Any) -> tuple[Tensor, None]:
        heads, nope = self.n_heads, self.nope_dim
        q_nope, q_rope = self._queries(x).split([nope, self.rope_dim], dim=-1)
        c, k_rope = self.kv_down_proj(x).split([self.kv_rank, self.rope_dim], dim=-1)
        c, k_rope = self.kv_norm(c), k_rope.unsqueeze(2)
        if self.norms == "latent":
            q = torch.einsum("bthn,hnr->bthr", q_nope, self.k_up)
            q_nope, q_rope = self.gains["q"](torch.cat([q, q_rope], -1)).split([self.kv_rank, self.rope_dim], dim=-1)
            k = c.repeat(1, 1, heads)
        else:
            k = self.direct_proj(x) if self.direct == "keys" else F.linear(c, self.k_up.flatten(0, -2))
        v = self.direct_proj(x) if self.direct == "values" else F.linear(c, self.v_up.flatten(0, -2))
        if self.norms == "tokens":
            k = self.gains["k"](k)
        k, v = k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1))
        if self.norms in ("tokens", "parts", "latent"):
            k_rope = self.gains["k_rope"](k_rope)
        if self.norms == "parts":
            q_nope, q_rope, k = self.gains["q"](q_nope), self.gains["q_rope"](q_rope), self.gains["k"](k)
        elif self.norms not in ("none", "latent"):
            q_nope, q_rope = self.gains["q"](torch.cat([q_nope, q_rope], -1)).split([nope, self.rope_dim], dim=-1)
        if self.norms == "heads":
            k = torch.cat([k, k_rope.expand(-1, -1, heads, -1)], -1)
            k, k_rope = self.gains["k"](k).split([nope, self.rope_dim], dim=-1)
        cos, sin = (table.unsqueeze(-2) for table in self.rope.tables(x.shape[1], x))
        q = torch.cat([q_nope, rotate(q_rope, cos, sin, "half")], -1).transpose(1, 2)
        k_rope = rotate(k_rope, cos, sin, "half").expand(-1, -1, heads, -1)
        k = torch.cat([k, k_rope], -1).transpose(1, 2)
        if self.logit_limit is not None and self.training:
            with torch.no_grad():
                logits = (q @ k.mT).float().tril() * q.shape[-1] ** -0.5
                self.largest = logits.abs().amax((0, 2, 3)).clamp(min=1e-6)
        mixed, _ = attend(q, k, v.transpose(1, 2), causal=True, scale=q.shape[-1] ** -0.5)
        return self.output_proj(mixed.transpose(1, 2).flatten(2)), None

    @torch.no_grad()
    def clip(self) -> None:
        """Shrink the maps of heads whose logits exceeded the limit."""
        if self.logit_limit is None:
            return
        shrink = (self.logit_limit / self.largest).clamp(max=1.0)[:, None, None]
        q = self.q_proj.weight.unflatten(0, (self.n_heads, -1))
        q[:, : self.nope_dim] *= shrink.sqrt()
        q[:, self.nope_dim :] *= shrink  # the rotary key belongs to all heads
        self.k_up.mul_(shrink.sqrt())

    def cost(self, tokens: int) -> Cost:
        return measured_cost(self, tokens, self.d_model)


@torch.no_grad()
def patch(attention: LatentAttention, *, joint: bool, start: Start | None) -> None:
    """Treat or start an attention otherwise than the library does; before training.

    Args:
        attention: one that has just been made.
        joint: let Muon treat the maps to latent and rotary key as one matrix.
        start: of the up-projections: random (as a `Linear` from the latent to all heads), twice (so, values twice as
            large), identity (so, but every head's values are the first numbers of the latent); None = as the library's.
    """
    if joint:
        attention.kv_down_proj.d_outs = ()
    if start is None:
        return
    for stack in (attention.k_up, attention.v_up):
        if stack is not None:
            rank = stack.shape[-1]
            std = (2 / (rank + stack.numel() // rank)) ** 0.5
            nn.init.trunc_normal_(stack, std=std, a=-3 * std, b=3 * std)
    if start == "twice":
        attention.v_up.mul_(2)
    if start == "identity":
        for matrix in attention.v_up:
            nn.init.eye_(matrix)


@dataclass(frozen=True)
class Variant:
    """A choice under its own options of training.

    Args:
        part: of the experiment.
        choice: the layers; sized to standard attention's parameters.
        joint: as in `patch`.
        start: as in `patch`.
        train: options of training that differ.
        tokens: times the terms' tokens.
    """

    part: str
    choice: str
    joint: bool = False
    start: Start | None = None
    train: tuple[tuple[str, Any], ...] = ()
    tokens: float = 1.0

    @property
    def name(self) -> str:
        words = [f"{key}={value}" for key, value in self.train]
        words += ["rows joint"] if self.joint else []
        words += [f"start {self.start}"] if self.start else []
        words += [f"tokens x{self.tokens:g}"] if self.tokens != 1 else []
        return f"{self.choice} ({', '.join(words)})" if words else self.choice


def before(part: str, choice: str, **options: Any) -> Variant:
    """A variant as the library had it before: one matrix for latent and rotary key, up-projections drawn at random."""
    return Variant(part, choice, joint=True, start="random", **options)


VARIANTS = (
    Variant("ladder", "standard"),
    Variant("ladder", "standard[qk_norm=false]"),
    Variant("ladder", "standard[n_kv_heads=1]"),
    Variant("ladder", "standard[n_kv_heads=1,qk_norm=false]"),
    before("ladder", "mla[rope=full,kv_rank=128,latent_norm=false]"),
    before("ladder", "mla[rope=full,kv_rank=128]"),
    before("ladder", "mla[kv_rank=128]"),
    before("ladder", "mla"),
    before("ladder", "mla-trial[direct=values]"),
    before("ladder", "mla-trial[direct=keys]"),
    Variant("after", "mla"),
    Variant("cures", "mla", start="random"),
    Variant("cures", "mla", joint=True),
    Variant("cures", "mla", start="identity"),
    Variant("cures", "mla", start="twice"),
    Variant("cures", "mla[kv_rank=64]"),
    Variant("cures", "mla[rope_dim=32]"),
    Variant("cures", "mla-trial[direct=values]"),
    Variant("cures", "mla-trial[norms=latent]"),
    Variant("cures", "mla-trial[norms=heads]"),
    Variant("cures", "mla-trial[norms=queries]"),
    Variant("cures", "mla-trial[norms=tokens]"),
    Variant("cures", "mla-trial[norms=parts]"),
    Variant("cures", "mla-trial[logit_limit=15]"),
    before("cures", "mla-trial[norms=heads]"),
    before("cures", "mla-trial[ups=flat]"),
)


class Experiment:
    """The terms, the data, and the file that holds what was run.

    Args:
        out: JSON, read first if it is there.
        seeds: seeds of a variant.
        tokens: budget of a run.
    """

    def __init__(self, out: Path, seeds: int, tokens: float) -> None:
        self.base: Run[Any, Any] = base_run("lm", GROUPS)
        self.data = self.base.kind.load_data(self.base.data, self.base.model)
        self.reference = self.model("standard")
        self.out, self.seeds, self.tokens = out, seeds, tokens
        self.record: dict[str, Any] = {
            "processor": processor_name(),
            "torch": torch.__version__,
            "terms": {**GROUPS, "tokens": tokens},
            "variants": {},
        }
        if out.exists():
            self.record["variants"] = json.loads(out.read_text(encoding="utf-8"))["variants"]

    def model(self, choice: str) -> Any:
        layers = tuple(parse_choice(choice, self.base.kind.choice_ffn))
        return self.base.kind.fit(replace(self.base.model, blocks=layers), self.data.assets)

    def loss(self, variant: Variant, factor: float, seed: int) -> tuple[float, float, dict[str, Any]]:
        """Validation loss of one run in nats per byte, its CPU seconds, and how its size was matched."""
        matched = match(self.reference, self.model(variant.choice), "params")
        steps = round(variant.tokens * self.tokens / self.base.train.batch_size / self.base.model.context)
        train = at_rate(replace(self.base.train, **dict(variant.train)), factor)
        train = replace(watched(train, steps, steps, steps, seed), save_every=0)
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            task = self.base.kind.make_task(replace(self.base, model=matched.config, train=train), self.data)
            for attention in task.model.modules():
                if isinstance(attention, LatentAttention):
                    patch(attention, joint=variant.joint, start=variant.start)
            trainer = Trainer(task, train, Path(folder) / "run", resolved={})
            clipped = [m for m in task.model.modules() if isinstance(m, TrialAttention) and m.logit_limit is not None]
            try:
                while not trainer.done:
                    trainer.advance(1 if clipped else steps)
                    for attention in clipped:
                        attention.clip()
                found = trainer.evaluate()["val_loss"]
            finally:
                trainer.close()
        return found, time.process_time() - started, dict(matched.record)

    def run(self, variant: Variant, factor: float = 1.0, seeds: int | None = None) -> list[float]:
        """The losses of a variant by seed; what the file lacks is run, and written to it."""
        name = variant.name + (f" at rate x{factor:g}" if factor != 1 else "")
        new = {"part": variant.part, "factor": factor, "losses": [], "cpu_seconds": []}
        kept = self.record["variants"].setdefault(name, new)
        for seed in range(len(kept["losses"]), self.seeds if seeds is None else seeds):
            loss, seconds, record = self.loss(variant, factor, seed)
            kept["losses"].append(loss)
            kept["cpu_seconds"].append(seconds)
            kept |= {"parameters": record["got"], "changed": record["changed"]}
            kept["mean"], kept["half_width"] = interval(kept["losses"])
            self.out.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        around = "" if kept["half_width"] is None else f" ± {kept['half_width']:.3f}"
        print(f"{kept['mean']:.4f}{around}  {name}  {[round(loss, 4) for loss in kept['losses']]}", flush=True)
        return kept["losses"]

    def at_own_rate(self, variant: Variant) -> None:
        """The variant at the best factor of a ladder that one seed finds."""
        found = {factor: self.run(variant, factor, seeds=1)[0] for factor in FACTORS}
        while (best := min(found, key=lambda factor: found[factor])) in (min(found), max(found)):
            factor = best / 2 if best == min(found) else best * 2
            found[factor] = self.run(variant, factor, seeds=1)[0]
        self.run(variant, best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON; what it holds already is not run again")
    parser.add_argument("--only", help="parts (ladder, cures, after, adamw, longer), with commas; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=float, default=300_000, help="of one run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = (arguments.only or "ladder,cures,after,adamw,longer").split(",")
    experiment = Experiment(arguments.out, arguments.seeds, arguments.tokens)
    for variant in VARIANTS:
        if variant.part in parts:
            experiment.run(variant)
    if "adamw" in parts:
        adamw = (("optimizer", "adamw"),)
        for variant in (Variant("adamw", "standard", train=adamw), Variant("adamw", "mla", train=adamw)):
            experiment.at_own_rate(variant)
        experiment.at_own_rate(before("adamw", "mla", train=adamw))
    if "longer" in parts:
        for choice in ("standard", "mla"):
            experiment.run(Variant("longer", choice, tokens=10.0), seeds=1)


if __name__ == "__main__":
    main()
