"""An imported model beside the same weights in transformers: logits, greedy text, speed, first token and memory.

    python benchmarks/pretrained.py MODEL [--out pretrained.json] [--rounds 5] [--threads 1]

MODEL is a folder with config.json and safetensors. Both models stand in one process and take turns, timed by the
process's CPU seconds: tokens per second of a forward pass over `--length` tokens, of `--tokens` greedy tokens behind a
prompt of that length (transformers by its own `generate`, with a dynamic and a static cache), and the seconds from a
prompt to its first token. Memory is the peak of a fresh process that loads one of them and writes the same tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", default="pretrained.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peak", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.peak:
        print(json.dumps(peak(asked)))
        return
    record = measure(asked)
    record["memory"] = {side: fresh(asked, side) for side in ("ours", "theirs")}
    Path(asked.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def original(folder: str) -> Any:
    """The model as transformers has it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def ours_of(folder: str) -> Any:
    from blockyard.pretrained import load_pretrained

    return load_pretrained(folder, check=False).model


@torch.inference_mode()
def written(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """Greedy tokens of ours behind a prompt, with its cache."""
    from blockyard.generation import SamplingConfig, generate

    greedy = SamplingConfig(temperature=0.0)
    return list(generate(model, ids[0], max_new_tokens=count, sampling=greedy))


@torch.inference_mode()
def written_by(model: Any, ids: torch.Tensor, count: int, cache: str) -> list[int]:
    """Greedy tokens of transformers."""
    how = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
        pad_token_id=0, eos_token_id=None, **how,
    )  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything but memory."""
    theirs, ours = original(asked.model), ours_of(asked.model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, ours.config.vocab_size, (1, asked.length), generator=generator)
    with torch.inference_mode():
        expected, actual = theirs(ids).logits, ours(ids).logits
    count = asked.tokens
    texts = {"ours": written(ours, ids, count), "theirs": written_by(theirs, ids, count, "dynamic")}

    def forward(model: Any) -> Callable[[], Any]:
        def call() -> None:
            with torch.inference_mode():
                model(ids)

        return call

    cases: dict[str, tuple[Callable[[], Any], int]] = {
        "forward ours": (forward(ours), asked.length),
        "forward transformers": (forward(theirs), asked.length),
        "first token ours": (lambda: written(ours, ids, 1), 1),
        "first token transformers": (lambda: written_by(theirs, ids, 1, "dynamic"), 1),
        "write ours": (lambda: written(ours, ids, count), count),
        "write transformers, dynamic cache": (lambda: written_by(theirs, ids, count, "dynamic"), count),
        "write transformers, static cache": (lambda: written_by(theirs, ids, count, "static"), count),
    }
    seconds = in_turns({name: call for name, (call, _) in cases.items()}, asked.rounds)
    speeds = {name: cases[name][1] / statistics.median(times) for name, times in seconds.items()}
    return {
        "model": Path(asked.model).name,
        "processor": processor(),
        "torch": torch.__version__,
        "threads": asked.threads,
        "length": asked.length,
        "tokens": count,
        "rounds": asked.rounds,
        "logits": {
            "largest_difference": float((actual - expected).abs().max()),
            "largest": float(expected.abs().max()),
        },
        "greedy_tokens_equal": sum(a == b for a, b in zip(texts["ours"], texts["theirs"])),
        "tokens_per_cpu_second": speeds,
        "ratios": {
            "forward": speeds["forward ours"] / speeds["forward transformers"],
            "write, to the dynamic cache": speeds["write ours"] / speeds["write transformers, dynamic cache"],
            "write, to the static cache": speeds["write ours"] / speeds["write transformers, static cache"],
            "first token": speeds["first token ours"] / speeds["first token transformers"],
        },
        "cpu_seconds": seconds,
    }


def in_turns(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every case, there and back, so that a machine that slows down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for call in cases.values():
        call()
    for _ in range(rounds):
        for name in order:
            start = time.process_time()
            cases[name]()
            found[name].append(time.process_time() - start)
        order.reverse()
    return found


def fresh(asked: argparse.Namespace, side: str) -> dict[str, float]:
    """What a fresh process takes that loads one of the models and writes."""
    words = [sys.executable, __file__, asked.model, "--peak", side, "--threads", str(asked.threads)]
    words += ["--length", str(asked.length), "--tokens", str(asked.tokens)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(asked: argparse.Namespace) -> dict[str, float]:
    """Peak bytes of this process, and CPU seconds from its start to the model and to the first token."""
    model = ours_of(asked.model) if asked.peak == "ours" else original(asked.model)
    loaded = time.process_time()
    ids = torch.randint(0, 1000, (1, asked.length), generator=torch.Generator().manual_seed(0))
    write = written if asked.peak == "ours" else lambda m, i, n: written_by(m, i, n, "dynamic")
    write(model, ids, 1)
    first = time.process_time()
    write(model, ids, asked.tokens)
    # Of this program alone: what getrusage tells counts the process that started it, too.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    most = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return {"peak_bytes": most, "cpu_seconds_to_model": loaded, "cpu_seconds_to_first_token": first}


def processor() -> str:
    from blockyard.machine.processor import processor_name

    return processor_name()


if __name__ == "__main__":
    main()
