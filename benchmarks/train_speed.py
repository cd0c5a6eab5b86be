"""Training speed and time to a loss, in process CPU time on one thread, beside nanoGPT where a checkout is given.

    python benchmarks/train_speed.py [--peer PATH] [--seconds 40] [--data FILE] [--out FILE.json]

Both train on the same bytes of the same text at the same shape (4 layers, 4 heads, width 128, context 64),
interleaved in slices of steps within one process. Ours is `train lm` with its defaults, batch included, and once with
the peer's batch; the peer is measured with its own batch for a CPU (12) and with ours. PATH is a checkout of
https://github.com/karpathy/nanoGPT, whose model.py is imported from there as it is, in the manner of its train.py
(AdamW 0.9/0.95, decay 0.1, clipping at 1, warm-up, cosine). Compilation is left out of the CPU figures and reported
beside them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blockyard.tasks.run import make_task
from blockyard.tasks.settings import as_groups, resolve
from blockyard.text import TextData, TextDataConfig, load_text
from blockyard.training.environment import describe_environment
from blockyard.training.trainer import Trainer

SHAPE = {"n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64}
# nanoGPT's own batch for a CPU, and a slice of a measurement in sequences.
PEER_BATCH = 12
SLICE = 240


class Ours:
    """A run of `train lm` with its defaults, advanced by hand."""

    def __init__(self, steps: int, data: TextDataConfig, options: dict[str, Any]) -> None:
        train = {"steps": steps, "threads": 1, "eval_every": 0, "save_every": 0, "progress": False}
        path = {"path": data.path, "max_bytes": data.max_bytes}
        run = resolve({"model": SHAPE, "data": path, "train": train | options})
        self.folder = tempfile.TemporaryDirectory()
        self.batch = run.train.batch_size
        self.trainer = Trainer(make_task(run), run.train, Path(self.folder.name) / "run", resolved=as_groups(run))

    def advance(self, steps: int) -> None:
        self.trainer.advance(steps)

    @property
    def cpu_seconds(self) -> float:
        return self.trainer.cpu_seconds - self.trainer.clock.compile_cpu_seconds

    @property
    def compile_seconds(self) -> float:
        return self.trainer.clock.compile_seconds

    @property
    def done(self) -> bool:
        return self.trainer.done

    def val_loss(self) -> float:
        return self.trainer.evaluate()["val_loss"]

    def about(self) -> dict[str, Any]:
        return {
            "decisions": list(self.trainer.decisions.why),
            "compile_seconds": round(self.compile_seconds, 1),
            "train": {k: v for k, v in vars(self.trainer.config).items() if k in ("matrix_lr", "optimizer")}
            | {"lr": self.trainer.config.adamw_lr},
        }

    def close(self) -> None:
        self.trainer.close()
        self.folder.cleanup()


class NanoGPT:
    """The peer's model in the manner of its train.py, on our batches."""

    def __init__(
        self,
        module: Any,
        steps: int,
        data: TextData,
        lr: float,
        *,
        batch: int = PEER_BATCH,
        bf16: bool = False,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(1337)
        config = module.GPTConfig(
            block_size=SHAPE["context"],
            vocab_size=data.tokenizer.vocab_size,
            n_layer=SHAPE["n_layers"],
            n_head=SHAPE["n_heads"],
            n_embd=SHAPE["d_model"],
            dropout=0.0,
            bias=False,
        )
        self.model = module.GPT(config)
        self.optimizer = self.model.configure_optimizers(0.1, lr, (0.9, 0.95), "cpu")
        self.call: Callable[..., Any] = torch.compile(self.model) if compiled else self.model
        self.steps, self.data, self.lr, self.batch, self.bf16, self.compiled = steps, data, lr, batch, bf16, compiled
        self.step, self.cpu_seconds, self.compile_seconds = 0, 0.0, 0.0

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            wall, cpu = time.perf_counter(), time.process_time()
            self._one_step()
            if self.step == 1 and self.compiled:
                self.compile_seconds = time.perf_counter() - wall
            else:
                self.cpu_seconds += time.process_time() - cpu

    def _one_step(self) -> None:
        warmup = 100
        if self.step < warmup:
            factor = (self.step + 1) / (warmup + 1)
        else:
            done = min((self.step - warmup) / max(self.steps - warmup, 1), 1.0)
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        batch = self.data.batch(0, self.step, self.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            _, loss = self.call(batch["input_ids"], batch["targets"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        self.step += 1

    @torch.no_grad()
    def val_loss(self) -> float:
        self.model.eval()
        losses = [
            self.model(b["input_ids"], b["targets"])[1].item()
            for b in self.data.val_batches(32, SHAPE["context"], limit=20)
        ]
        self.model.train()
        return statistics.fmean(losses)


def load_peer(path: Path) -> Any:
    """Import model.py from a checkout."""
    file = path / "model.py"
    spec = importlib.util.spec_from_file_location("peer_model", file)
    if spec is None or spec.loader is None or not file.is_file():
        sys.exit(f"error: {file} is no file; give --peer a checkout of nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer_model"] = module
    spec.loader.exec_module(module)
    return module


def measure_speed(runners: dict[str, Any], slices: int) -> dict[str, dict[str, Any]]:
    """Medians of process CPU time, the runners taking turns of equally many tokens."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner.advance(max(10, SLICE // runner.batch))
    for _ in range(slices):
        for name, runner in runners.items():
            before = runner.cpu_seconds
            runner.advance(SLICE // runner.batch)
            times[name].append((runner.cpu_seconds - before) / (SLICE // runner.batch))
    found: dict[str, dict[str, Any]] = {}
    for name, each in times.items():
        median = statistics.median(each)
        found[name] = {
            "ms_per_step": round(median * 1e3, 2),
            "fastest": round(min(each) * 1e3, 2),
            "slowest": round(max(each) * 1e3, 2),
            "batch": runners[name].batch,
            "tokens_per_cpu_second": round(runners[name].batch * SHAPE["context"] / median),
            "compile_seconds": round(runners[name].compile_seconds, 1),
        }
    return found


def time_to_loss(
    arguments: argparse.Namespace, data_config: TextDataConfig, data: TextData, peer: Any, speed: dict[str, Any]
) -> dict[str, Any]:
    """Our validation loss over CPU time, and when it passes the peer's best after the whole of its budget."""
    name = "ours, eager" if arguments.no_compile else "ours, compiled whole"
    steps = round(arguments.ours_seconds * 1e3 / speed[name]["ms_per_step"])
    ours = Ours(steps, data_config, {"compile": "off" if arguments.no_compile else "model"})
    curve = []
    while not ours.done:
        ours.advance(max(steps // 24, 1))
        curve.append((round(ours.cpu_seconds, 2), round(ours.val_loss(), 4)))
    found: dict[str, Any] = {"ours": {"steps": steps, "curve": curve, **ours.about()}}
    ours.close()
    if peer:
        peer_steps = round(arguments.seconds * 1e3 / speed["nanoGPT"]["ms_per_step"])
        finals = {}
        for lr in arguments.peer_lr:
            runner = NanoGPT(peer, peer_steps, data, lr)
            runner.advance(peer_steps)
            finals[lr] = {"val_loss": round(runner.val_loss(), 4), "cpu_seconds": round(runner.cpu_seconds, 1)}
        target = min(final["val_loss"] for final in finals.values())
        found["nanoGPT"] = {"steps": peer_steps, "by_rate": finals}
        found["ours"]["cpu_seconds_to_its_loss"] = next((s for s, loss in curve if loss <= target), None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT; without it only ours is measured")
    parser.add_argument("--data", help="text file; default: 1.1 MB of the standard library's own source")
    parser.add_argument("--slices", type=int, default=10, help="slices of 240 sequences for the speeds")
    parser.add_argument("--seconds", type=float, default=0.0, help="also time to loss: CPU seconds of the peer's run")
    parser.add_argument("--ours-seconds", type=float, default=12.0, help="CPU seconds of our run")
    parser.add_argument("--peer-lr", type=float, nargs="*", default=[1e-3, 3e-3, 6e-3], help="the peer's rates")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data_config = TextDataConfig(path=arguments.data, max_bytes=1_100_000)
    data = load_text(data_config, SHAPE["context"])
    peer = load_peer(arguments.peer) if arguments.peer else None

    many = 10**6
    runners: dict[str, Any] = {"ours, eager": Ours(many, data_config, {"compile": "off"})}
    if not arguments.no_compile:
        runners["ours, compiled by block"] = Ours(many, data_config, {"compile": "on"})
        runners["ours, compiled whole"] = Ours(many, data_config, {"compile": "model"})
        same = {"compile": "model", "batch_size": PEER_BATCH}
        runners["ours, compiled whole, the peer's batch"] = Ours(many, data_config, same)
    if peer:
        runners["nanoGPT"] = NanoGPT(peer, many, data, 1e-3)
        runners["nanoGPT, our batch"] = NanoGPT(peer, many, data, 1e-3, batch=runners["ours, eager"].batch)
        runners["nanoGPT, bf16"] = NanoGPT(peer, many, data, 1e-3, bf16=True)
        if not arguments.no_compile:
            runners["nanoGPT, bf16, compiled"] = NanoGPT(peer, many, data, 1e-3, bf16=True, compiled=True)
    speed = measure_speed(runners, arguments.slices)
    for name, runner in runners.items():
        if peer:
            ratio = speed[name]["tokens_per_cpu_second"] / speed["nanoGPT"]["tokens_per_cpu_second"]
            speed[name]["times_nanoGPT"] = round(ratio, 2)
        if isinstance(runner, Ours):
            runner.close()
    result: dict[str, Any] = {
        "environment": describe_environment(torch.device("cpu"), 1),
        "data": data.fingerprint,
        "shape": SHAPE,
        "speed": speed,
    }
    if arguments.seconds:
        result["time_to_loss"] = time_to_loss(arguments, data_config, data, peer, speed)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
