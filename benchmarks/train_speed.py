"""Training speed and time to a loss, in process CPU time on one thread, beside nanoGPT where a checkout is given.

    python benchmarks/train_speed.py [--peer PATH] [--shape 10.7M] [--seconds 20 40] [--data FILE] [--out FILE.json]

Both train on the same bytes of the same text at the same shape, interleaved in slices of steps within one process:
tiny is 4 layers, 4 heads, width 128 and context 64; 10.7M is 6 layers, 6 heads, width 384 and context 256. In the same
turns the machine's own matrix products are timed, at the shapes that the model multiplies and at a large one, and the
part of their rate that training reaches is told: of the model's products by formula (attention counted dense), and with
those of the optimizer. Ours is `train lm` with its defaults, batch included, and once with
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
from typing import Any, ClassVar

import torch

from blockyard.tasks.run import make_task
from blockyard.tasks.settings import as_groups, resolve
from blockyard.text import TextData, TextDataConfig, load_text
from blockyard.training.environment import describe_environment
from blockyard.training.precision import float32_matmul
from blockyard.training.trainer import Trainer

SHAPES = {
    "tiny": {"n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64},
    "10.7M": {"n_layers": 6, "n_heads": 6, "d_model": 384, "context": 256},
}
SHAPE = dict(SHAPES["tiny"])
# nanoGPT's own batch for a CPU, and a slice of a measurement in sequences: those of several steps of either.
PEER_BATCH = 12
SLICES = {"tiny": 240, "10.7M": 36}


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


class Products:
    """This machine's rates of matrix products, in turns with the runs: of the model's own shapes and a large one."""

    KINDS: ClassVar[dict[str, tuple[torch.dtype, str]]] = {
        "fp32": (torch.float32, "highest"),
        "fp32, fast": (torch.float32, "medium"),
        "bf16": (torch.bfloat16, "highest"),
    }

    def __init__(self, rows: int) -> None:
        width = SHAPE["d_model"]
        # Queries, keys and values in one product, output, up, down: (inputs, outputs) of each.
        own = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        self.shapes = {"the model's": [(rows, *pair) for pair in own], "2048 x 2048 x 2048": [(2048, 2048, 2048)]}
        self.rates: dict[tuple[str, str], list[float]] = {}

    def measure(self) -> None:
        """Time forward products and both of the backward pass, once each."""
        for kind, (dtype, precision) in self.KINDS.items():
            for name, shapes in self.shapes.items():
                flops, seconds = 0, 0.0
                with float32_matmul(precision):
                    for rows, d_in, d_out in shapes:
                        x, w, grad = (
                            torch.randn(*size).to(dtype) for size in ((rows, d_in), (d_out, d_in), (rows, d_out))
                        )
                        for a, b in ((x, w.mT), (grad, w), (grad.mT, x)):
                            torch.mm(a, b)
                            before = time.process_time()
                            torch.mm(a, b)
                            seconds += time.process_time() - before
                            flops += 2 * rows * d_in * d_out
                self.rates.setdefault((kind, name), []).append(flops / seconds)

    def found(self) -> dict[str, dict[str, float]]:
        """Return GFLOP/s by kind and shape: median, fewest and most."""
        return {
            f"{kind}, {name}": {"gflops": round(statistics.median(each) / 1e9, 1), **_ends([r / 1e9 for r in each], 1)}
            for (kind, name), each in self.rates.items()
        }

    def best(self) -> float:
        """Return the highest median rate, FLOP/s: what a share is a share of."""
        return max(statistics.median(each) for each in self.rates.values())


def _ends(values: list[float], digits: int) -> dict[str, float]:
    return {"least": round(min(values), digits), "most": round(max(values), digits)}


def update_flops(runner: Ours) -> int:
    """Return FLOPs of the optimizer's own products in a step: the iterations that make matrices orthogonal."""
    total = 0
    for optimizer in runner.trainer.engine.optimizers.members:
        for group in optimizer.param_groups:
            if "steps" in group:
                for parameter in group["params"]:
                    short, long = sorted(parameter.shape[-2:])
                    total += group["steps"] * (4 * short * short * long + 2 * short**3)
    return total


def measure_speed(runners: dict[str, Any], slices: int, sequences: int) -> tuple[dict[str, dict[str, Any]], Products]:
    """Medians of process CPU time, the runners taking turns of about equally many tokens."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    products = Products(max(runner.batch for runner in runners.values()) * SHAPE["context"])
    for runner in runners.values():
        runner.advance(2 if sequences < 100 else max(10, sequences // runner.batch))
    for _ in range(slices):
        products.measure()
        for name, runner in runners.items():
            before, steps = runner.cpu_seconds, max(1, sequences // runner.batch)
            runner.advance(steps)
            times[name].append((runner.cpu_seconds - before) / steps)
    found: dict[str, dict[str, Any]] = {}
    for name, each in times.items():
        runner = runners[name]
        median, tokens = statistics.median(each), runner.batch * SHAPE["context"]
        found[name] = {
            "ms_per_step": round(median * 1e3, 2),
            "fastest": round(min(each) * 1e3, 2),
            "slowest": round(max(each) * 1e3, 2),
            "batch": runner.batch,
            "tokens_per_cpu_second": round(tokens / median),
            "spread": {k: round(v) for k, v in _ends([tokens / t for t in each], 0).items()},
            "compile_seconds": round(runner.compile_seconds, 1),
        }
        if isinstance(runner, Ours):
            flops = runner.trainer.task.flops_per_step
            found[name]["share_of_products"] = round(flops / median / products.best(), 3)
            with_update = (flops + update_flops(runner)) / median / products.best()
            found[name]["share_with_the_optimizers_own"] = round(with_update, 3)
    return found, products


def time_to_loss(
    arguments: argparse.Namespace,
    seconds: float,
    data_config: TextDataConfig,
    data: TextData,
    peer: Any,
    speed: dict[str, Any],
) -> dict[str, Any]:
    """The peer's best loss after so many CPU seconds, and what ours has after each of some shorter runs of its own."""
    eager = arguments.no_compile
    name = "ours, eager" if eager else "ours, compiled whole"
    peer_steps, finals = round(seconds * 1e3 / speed["nanoGPT"]["ms_per_step"]), {}
    for lr in arguments.peer_lr:
        runner = NanoGPT(peer, peer_steps, data, lr)
        runner.advance(peer_steps)
        finals[lr] = {"val_loss": round(runner.val_loss(), 4), "cpu_seconds": round(runner.cpu_seconds, 1)}
    target = min(final["val_loss"] for final in finals.values())
    runs = []
    # Whole runs, each with its schedule to the end, from short to long until one is there.
    for part in arguments.parts:
        steps = round(part * seconds * 1e3 / speed[name]["ms_per_step"])
        # The numbers of a step hardly differ from eager to compiled; a short run is not compiled only to be counted.
        ours = Ours(steps, data_config, {"compile": "off" if eager or arguments.count_steps else "model"})
        ours.advance(steps)
        counted = steps * speed[name]["ms_per_step"] / 1e3
        runs.append({"steps": steps, "cpu_seconds": round(counted, 2), "val_loss": round(ours.val_loss(), 4)})
        runs[-1]["cpu_seconds_as_run"] = round(ours.cpu_seconds, 2)
        ours.close()
        if runs[-1]["val_loss"] <= target:
            break
    reached = [run["cpu_seconds"] for run in runs if run["val_loss"] <= target]
    peers = {"steps": peer_steps, "by_rate": finals}
    return {"seconds": seconds, "nanoGPT": peers, "ours": runs, "cpu_seconds_to_its_loss": min(reached, default=None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT; without it only ours is measured")
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny", help="which model")
    parser.add_argument("--data", help="text file; default: 1.1 MB of the standard library's own source")
    parser.add_argument("--slices", type=int, default=10, help="turns for the speeds")
    parser.add_argument(
        "--seconds", type=float, nargs="*", default=[], help="also time to loss: CPU seconds of the peer"
    )
    parser.add_argument("--parts", type=float, nargs="*", default=[0.1, 0.125, 0.15, 0.2], help="of them, our runs")
    parser.add_argument(
        "--count-steps", action="store_true", help="time to loss by steps, at the speed measured before"
    )
    parser.add_argument("--peer-lr", type=float, nargs="*", default=[1e-3, 3e-3, 6e-3], help="the peer's rates")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument("--few", action="store_true", help="leave out blocks compiled apart and exchanged batches")
    parser.add_argument("--without", nargs="*", default=[], help="names of variants to leave out")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if arguments.seconds and arguments.peer is None:
        parser.error("--seconds is the peer's: it goes with --peer")
    torch.set_num_threads(1)
    SHAPE.update(SHAPES[arguments.shape])
    data_config = TextDataConfig(path=arguments.data, max_bytes=1_100_000)
    data = load_text(data_config, SHAPE["context"])
    peer = load_peer(arguments.peer) if arguments.peer else None

    many = 10**6
    runners: dict[str, Any] = {"ours, eager": Ours(many, data_config, {"compile": "off"})}
    if not arguments.no_compile:
        runners["ours, compiled whole"] = Ours(many, data_config, {"compile": "model"})
        if not arguments.few:
            runners["ours, compiled by block"] = Ours(many, data_config, {"compile": "on"})
            same = {"compile": "model", "batch_size": PEER_BATCH}
            runners["ours, compiled whole, the peer's batch"] = Ours(many, data_config, same)
    if peer:
        runners["nanoGPT"] = NanoGPT(peer, many, data, 1e-3)
        if not arguments.few:
            runners["nanoGPT, our batch"] = NanoGPT(peer, many, data, 1e-3, batch=runners["ours, eager"].batch)
        runners["nanoGPT, bf16"] = NanoGPT(peer, many, data, 1e-3, bf16=True)
        if not arguments.no_compile:
            runners["nanoGPT, bf16, compiled"] = NanoGPT(peer, many, data, 1e-3, bf16=True, compiled=True)
    for name in arguments.without:
        if runners.pop(name, None) is None:
            parser.error(f"--without {name!r}: the variants are {', '.join(runners)}")
    speed, products = measure_speed(runners, arguments.slices, SLICES[arguments.shape])
    best = max((speed[n]["tokens_per_cpu_second"] for n, r in runners.items() if isinstance(r, NanoGPT)), default=None)
    for name, runner in runners.items():
        own = speed[name]["tokens_per_cpu_second"]
        if "nanoGPT" in speed:
            speed[name]["times_nanoGPT"] = round(own / speed["nanoGPT"]["tokens_per_cpu_second"], 2)
        if best:
            speed[name]["times_its_best"] = round(own / best, 2)
        if isinstance(runner, Ours):
            runner.close()
    result: dict[str, Any] = {
        "environment": describe_environment(torch.device("cpu"), 1),
        "data": data.fingerprint,
        "shape": SHAPE,
        "speed": speed,
        "matrix_products": products.found(),
    }
    if arguments.seconds:
        result["time_to_loss"] = [time_to_loss(arguments, s, data_config, data, peer, speed) for s in arguments.seconds]
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
