"""The search for the best vein form: language models on real text, every choice with the same CPU time.

    python benchmarks/vein_search.py --text FILE_OR_FOLDER --out RESULTS.json --measure
    python benchmarks/vein_search.py --text FILE_OR_FOLDER --out RESULTS.json [--cpu-seconds 12]
    python benchmarks/vein_search.py --text FILE --out LONGER.json --only "NAME;NAME" --seeds 0,1,2 --cpu-seconds 60

The first call times a training step of every choice, in turns; make it on a machine that does nothing else. The second
trains every choice for as many steps as fit into the budget by those times, so that it may run beside other work. Its
parts, each appended to the JSON as it is done, so that a run that was killed goes on:

1. field: every choice, one seed, equal CPU-seconds;
2. finalists, seconds: the best of the field and their rivals, two more seeds, equal CPU-seconds;
3. finalists, tokens: the same, three seeds, an equal number of tokens.

The third call runs the first part alone, of some choices and several seeds: for another budget, in a file of its own.

Parameters are read against the thin standard blocks, which are given in several sizes: a vein form wins at equal
parameters where its loss lies under theirs. Training is the library's own (`Trainer`, `LMTask`), eager, in float32, on
one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from blockyard.vein.migration import from_standard
from torch import Tensor, nn

from blockyard.models.lm import LMConfig
from blockyard.tasks.lm.task import LMTask
from blockyard.text import TextData, TextDataConfig, load_text
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer

D_MODEL, LAYERS, CONTEXT, BATCH = 192, 2, 128, 16
WARM, ROUNDS, TIMED = 3, 5, 3


@dataclass(frozen=True)
class Choice:
    """One entry of the search.

    Args:
        blocks: the layers.
        heads: number of attention heads.
        train: training options that differ.
        start: "svd" trains standard blocks for a third of the time and goes on from their low-rank copies.
        guided: share of the steps in which dense matrices lead the vein FFNs.
    """

    blocks: str
    heads: int = 3
    train: dict[str, Any] = field(default_factory=dict)
    start: str = "random"
    guided: float = 0.0


STANDARD = "standard 6x32, d_ff 768"
FIELD: dict[str, Choice] = {
    # Standard blocks, from the usual size down to thin ones.
    STANDARD: Choice("standard+standard", 6),
    "standard 3x32, relu2 384": Choice("standard[head_dim=32]+relu2[d_ff=384]"),
    "standard 4x16, relu2 192": Choice("standard[head_dim=16]+relu2[d_ff=192]", 4),
    "standard 2x16, relu2 128": Choice("standard[head_dim=16]+relu2[d_ff=128]", 2),
    "standard 2x16, relu2 256": Choice("standard[head_dim=16]+relu2[d_ff=256]", 2),
    "standard 1x16, relu2 256": Choice("standard[head_dim=16]+relu2[d_ff=256]", 1),
    "standard 1x12, relu2 256": Choice("standard[head_dim=12]+relu2[d_ff=256]", 1),
    "standard 1x16, relu2 64": Choice("standard[head_dim=16]+relu2[d_ff=64]", 1),
    # The document's form, and its parts one by one.
    "seed, rank 4": Choice("tva+vft[preset=seed,rank=4,rope=half]", 6),
    "folded, rank 4, full stabiliser": Choice("tva[rank=4]+vft[stabilizer=full,s=0]", 6),
    "folded, rank 4": Choice("tva[rank=4]+vft[s=0]", 6),
    # Ranks, value ranks, heads.
    "6x16, ffn 48": Choice("tva[rank=16]+vft[ffn_rank=48,s=0]", 6),
    "3x32, ffn 48": Choice("tva[rank=32]+vft[ffn_rank=48,s=0]"),
    "3x16 values 32, ffn 48": Choice("tva[rank=16,v_rank=32]+vft[ffn_rank=48,s=0]"),
    "2x32, ffn 48": Choice("tva[rank=32]+vft[ffn_rank=48,s=0]", 2),
    "3x32, ffn 96": Choice("tva[rank=32]+vft[ffn_rank=96,r_hidden=192,s=0]"),
    # Gate, ties, stabilisers, corrections, norms of queries and keys, the veins' rate.
    "3x32, ffn 48, no gate": Choice("tva[rank=32]+vft[ffn_rank=48,s=0,gated=false]"),
    "3x32, ffn 48, untied": Choice("tva[rank=32]+vft[ffn_rank=48,s=0,tied=false]"),
    "3x32, ffn 48, qk-norm": Choice("tva[rank=32,qk_norm=true]+vft[ffn_rank=48,s=0]"),
    "3x32, ffn 48, vein rate 1": Choice("tva[rank=32]+vft[ffn_rank=48,s=0]", train={"vein_lr_scale": 1.0}),
    "3x32, ffn 48, diagonal": Choice("tva[rank=32]+vft[ffn_rank=48,s=0,stabilizer=diag]"),
    "3x32, ffn 48, low-rank path": Choice("tva[rank=32]+vft[ffn_rank=48,s=0,stabilizer=lowrank]"),
    "3x32, ffn 48, one correction": Choice("tva[rank=32]+vft[ffn_rank=48,s=1]"),
    # Hybrids and half-vein blocks.
    "hybrid, vein then standard": Choice("tva[rank=32]+vft[ffn_rank=48,s=0]/standard[head_dim=32]+relu2[d_ff=384]"),
    "vein attention, relu2 384": Choice("tva[rank=16,v_rank=32,qk_norm=true]+relu2[d_ff=384]"),
    "2x8 values 16, relu2 128": Choice("tva[rank=8,v_rank=16,qk_norm=true]+relu2[d_ff=128]", 2),
    "1x8 values 16, relu2 128": Choice("tva[rank=8,v_rank=16,qk_norm=true]+relu2[d_ff=128]", 1),
    "2x4 values 16, relu2 128": Choice("tva[rank=4,v_rank=16,qk_norm=true]+relu2[d_ff=128]", 2),
    "1x8 values 16, ffn 96": Choice("tva[rank=8,v_rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 1),
    "2x8 values 16, ffn 96": Choice("tva[rank=8,v_rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 2),
    "4x16, ffn 96": Choice("tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 4),
    "2x16, ffn 96": Choice("tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 2),
    "2x16, ffn 96, untied": Choice("tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0,tied=false]", 2),
    "vein ffn 48, standard 3x32": Choice("standard[head_dim=32]+vft[rank=48,gated=true,tied=true,stabilizer=none]"),
    # Other ways to train.
    "3x32, ffn 48, guided": Choice("tva[rank=32]+vft[ffn_rank=48,s=0]", guided=0.5),
    "2x16, ffn 96, guided": Choice("tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 2, guided=0.5),
    "SVD of standard, ffn 48": Choice("tva+vft", 6, start="svd"),
    # A rank that changes while it trains, and the two that it changes between.
    "2x16, ffn 48, as wide": Choice("tva[rank=16,qk_norm=true]+vft[ffn_rank=48,r_hidden=192,s=0]", 2),
    "2x16, ffn 24 to 96": Choice(
        "tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 2, train={"vein_ranks": (24, 48, 96)}
    ),
    "2x16, ffn 96 to 48": Choice(
        "tva[rank=16,qk_norm=true]+vft[ffn_rank=96,r_hidden=192,s=0]", 2, train={"vein_ranks": (96, 72, 48)}
    ),
}


class Search:
    """Runs choices and keeps what they gave.

    Args:
        data: the text.
        path: the JSON file; what it holds already is not run again.
        budget: CPU-seconds of training per run.
    """

    def __init__(self, data: TextData, path: Path, budget: float) -> None:
        self.data, self.path, self.budget = data, path, budget
        held = json.loads(path.read_text()) if path.exists() else {}
        self.rows: list[dict[str, Any]] = held.get("rows", [])
        # CPU-seconds of a step, and of one with guides.
        self.costs: dict[str, list[float]] = held.get("costs", {})

    def save(self) -> None:
        setting = {"d_model": D_MODEL, "layers": LAYERS, "context": CONTEXT, "batch": BATCH, "budget": self.budget}
        found = {"torch": torch.__version__, "text": self.data.fingerprint, **setting}
        self.path.write_text(json.dumps({**found, "costs": self.costs, "rows": self.rows}, indent=1))

    def measure(self, names: list[str]) -> None:
        """Time the steps of every choice that has no times yet, in turns, on an idle machine."""
        new = {name: FIELD[name] for name in names if name not in self.costs}
        with tempfile.TemporaryDirectory() as folder:
            trainers: dict[str, list[Trainer]] = {}
            for name, choice in new.items():
                kinds = [0, 1000] if choice.guided else [0]
                configs = [self._config(choice, 0, 1000, vein_guide_steps=guided) for guided in kinds]
                trainers[name] = [
                    Trainer(self._task(choice, config), config, Path(folder) / f"{len(trainers)} {i}", resolved={})
                    for i, config in enumerate(configs)
                ]
                for trainer in trainers[name]:
                    trainer.advance(WARM)
            taken: dict[str, list[list[float]]] = {name: [[] for _ in made] for name, made in trainers.items()}
            for _ in range(ROUNDS):
                for name, made in trainers.items():
                    for times, trainer in zip(taken[name], made):
                        before = trainer.cpu_seconds
                        trainer.advance(TIMED)
                        times.append((trainer.cpu_seconds - before) / TIMED)
            for made in trainers.values():
                for trainer in made:
                    trainer.close()
        self.costs |= {name: [statistics.median(times) for times in kinds] for name, kinds in taken.items()}
        self.save()

    def run(self, part: str, name: str, seed: int, tokens: int | None = None) -> dict[str, Any]:
        """One run, or what the file holds of it."""
        for row in self.rows:
            if (row["part"], row["name"], row["seed"]) == (part, name, seed):
                return row
        steps = self._steps(name, tokens)
        found = (self._from_svd if FIELD[name].start == "svd" else self._train)(FIELD[name], seed, steps)
        row = {"part": part, "name": name, "seed": seed, "steps": steps, **found}
        self.rows.append(row | {"step_seconds": self.costs[name], "choice": asdict(FIELD[name])})
        self.save()
        print(
            f"{part:18} {name:34} seed {seed}: {row['val_loss']:.4f} nats, {row['block_parameters']:8} parameters, "
            f"{steps:5} steps",
            flush=True,
        )
        return self.rows[-1]

    def _steps(self, name: str, tokens: int | None) -> int:
        """Steps of the budget: of the tokens, or of the time, of which guided steps take more."""
        if tokens is not None:
            return tokens // (BATCH * CONTEXT)
        if FIELD[name].start == "svd":
            # A third of the time in the standard blocks, the rest in steps of the vein blocks.
            third = self.budget / 3
            return round(third / self.costs[STANDARD][0]) + round(2 * third / self.costs[name][0])
        guided = FIELD[name].guided
        plain, *more = self.costs[name]
        return round(self.budget / ((1 - guided) * plain + guided * (more[0] if more else 0.0)))

    def _train(self, choice: Choice, seed: int, steps: int) -> dict[str, Any]:
        config = self._config(choice, seed, steps, vein_guide_steps=round(choice.guided * steps))
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(self._task(choice, config), config, Path(folder) / "run", resolved={})
            try:
                trainer.advance(steps)
                return self._figures(trainer)
            finally:
                trainer.close()

    def _from_svd(self, choice: Choice, seed: int, steps: int) -> dict[str, Any]:
        standard = Choice(FIELD[STANDARD].blocks, choice.heads)
        first_steps = round(self.budget / 3 / self.costs[STANDARD][0])
        first_steps = min(first_steps, steps // 3)
        config = self._config(standard, seed, first_steps)
        task = self._task(standard, config)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(task, config, Path(folder) / "first", resolved={})
            trainer.advance(first_steps)
            first = trainer.evaluate()["val_loss"]
            trainer.close()
            task.model = convert(task.model, task.batch(0, slice(0, BATCH))["input_ids"])
            config = self._config(standard, seed, steps - first_steps)
            trainer = Trainer(task, config, Path(folder) / "second", resolved={})
            try:
                copied = trainer.evaluate()["val_loss"]
                trainer.advance(steps - first_steps)
                return self._figures(trainer) | {"standard_val_loss": first, "copied_val_loss": copied}
            finally:
                trainer.close()

    def _config(self, choice: Choice, seed: int, steps: int, **more: Any) -> TrainConfig:
        quiet: dict[str, Any] = {"eval_every": 0, "save_every": 0, "progress": False, "log_every": 1_000_000}
        how: dict[str, Any] = {"precision": "fp32", "compile": "off", "threads": 1, "eval_batches": 40}
        return TrainConfig(steps=steps, batch_size=BATCH, seed=seed, **{**quiet, **how, **choice.train, **more})

    def _task(self, choice: Choice, config: TrainConfig) -> LMTask:
        vocabulary = self.data.tokenizer.vocab_size
        shape: dict[str, Any] = {"d_model": D_MODEL, "n_layers": LAYERS, "context": CONTEXT}
        return LMTask(
            LMConfig(vocab_size=vocabulary, blocks=choice.blocks, n_heads=choice.heads, **shape), self.data, config
        )

    def _figures(self, trainer: Trainer) -> dict[str, Any]:
        model: Any = trainer.engine.model
        cost = model.cost(CONTEXT)
        return {
            "val_loss": trainer.last_metrics.get("val_loss") or trainer.evaluate()["val_loss"],
            "block_parameters": model.non_embedding_parameters,
            "flops_per_token": cost.flops / CONTEXT,
            "cache_bytes": cost.cache_bytes_per_token,
        }


def convert(model: nn.Module, ids: Tensor) -> nn.Module:
    """Every standard block of a model replaced by the vein block nearest to it on these inputs."""
    layers: nn.ModuleList = model.layers  # type: ignore[assignment]
    inputs: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, i=i: inputs.__setitem__(i, given[0].detach()))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    for i, layer in enumerate(layers):
        layers[i] = from_standard(layer, 16, inputs[i], ffn_rank=48, stabilizer_rank=24)  # type: ignore[arg-type]
    return model


def thin_rivals(rows: list[dict[str, Any]]) -> list[str]:
    """Standard blocks that no smaller standard block equals."""
    standard = sorted((r for r in rows if r["name"].startswith("standard")), key=lambda r: r["block_parameters"])
    kept: list[dict[str, Any]] = []
    for row in standard:
        if not kept or row["val_loss"] < min(r["val_loss"] for r in kept):
            kept.append(row)
    return [r["name"] for r in sorted(kept, key=lambda r: r["val_loss"])]


def finalists(rows: list[dict[str, Any]]) -> list[str]:
    """The three best forms with a vein FFN, the two best with vein attention alone, the best standard blocks."""
    ordered = sorted((r for r in rows if not r["name"].startswith("standard")), key=lambda r: r["val_loss"])
    whole = [r["name"] for r in ordered if "vft" in r["choice"]["blocks"]]
    alone = [r["name"] for r in ordered if "vft" not in r["choice"]["blocks"]]
    return whole[:3] + alone[:2] + thin_rivals(rows)[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="file or folder of text")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, continued when it exists")
    parser.add_argument("--cpu-seconds", type=float, default=12.0, help="training time of a run")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens of a run in the third part")
    parser.add_argument("--only", help="names from the field, separated by ';'; runs the first part only")
    parser.add_argument("--seeds", default="0", help="with --only: seeds of every choice, such as 0,1,2")
    parser.add_argument("--measure", action="store_true", help="time the steps instead of training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_text(TextDataConfig(path=given.text, tokenizer="byte"), CONTEXT)
    search = Search(data, given.out, given.cpu_seconds)
    names = given.only.split(";") if given.only else list(FIELD)
    if unknown := [name for name in names if name not in FIELD]:
        raise SystemExit(f"unknown choice {unknown[0]!r}; known: {'; '.join(FIELD)}")
    # A start by SVD trains the standard block first.
    needed = [*names, STANDARD] if any(FIELD[name].start == "svd" for name in names) else names
    if given.measure:
        search.measure(needed)
        for name, costs in search.costs.items():
            print(f"{name:34} {' / '.join(f'{1000 * cost:.1f}' for cost in costs)} ms a step")
        return
    if not set(needed) <= set(search.costs):
        raise SystemExit(f"{given.out} holds no times of these choices; call with --measure first")
    if given.only:
        for seed in map(int, given.seeds.split(",")):
            for name in names:
                search.run("field", name, seed)
        return
    rows = [search.run("field", name, 0) for name in names]
    parts: list[tuple[str, tuple[int, ...], int | None]] = [
        ("finalists, seconds", (1, 2), None),
        ("finalists, tokens", (0, 1, 2), given.tokens),
    ]
    for part, seeds, tokens in parts:
        for seed in seeds:
            for name in finalists(rows):
                search.run(part, name, seed, tokens)


if __name__ == "__main__":
    main()
