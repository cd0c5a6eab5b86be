"""Complex, real and spectral blocks on the blind task over the size of the training set: JSON, made again by

    python benchmarks/blind_signals.py --frames 2000,20000,none --seconds 60 --seeds 2 --out blind_signals.json

Each choice has as many parameters as the first (its width is what changes) and as many CPU seconds of one thread: the
CPU time of a step is measured in turns before anything trains, and the steps follow from it. Learning rates are each
choice's own, found by runs of a fifth of the steps on frames that are all new. Blocks see raw samples and the head sees
blocks alone (`--features all` gives it what an engineer would look at, too). A run ends with its accuracy over SNR on
frames that no training has seen. Runs lie in --folder and are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from blockyard.errors import InputError
from blockyard.files import write_atomically
from blockyard.machine.processor import processor_name
from blockyard.tasks.run import load_run, make_task, train
from blockyard.tasks.settings import resolve
from blockyard.tasks.signal.data import SignalData
from blockyard.tasks.signal.figures import signal_figures

CHOICES = {
    "standard": {"attn": {"impl": "standard"}, "ffn": {"impl": "relu2"}},
    "complex": {"attn": {"impl": "complex"}, "ffn": {"impl": "complex_swiglu"}},
    "spectral": {"attn": {"impl": "spectral"}, "ffn": {"impl": "relu2"}},
}
FACTORS, SHARE = (0.5, 1.0, 2.0), 0.2
LR, MATRIX_LR = 1e-2, 2e-2


def groups_of(name: str, width: int, options: argparse.Namespace, **training: Any) -> dict[str, Any]:
    """The option groups of a run."""
    model = {"d_model": width, "features": options.features, "n_layers": options.layers}
    return {
        **CHOICES[name],
        "model": model,
        "data": {"length": options.length, "val_frames": options.val_frames},
        "train": {
            "threads": 1, "compile": "off", "precision": "fp32", "device": "cpu", "progress": False, "eval_every": 0,
            "save_every": 0, "batch_size": options.batch, **training,
        },
    }  # fmt: skip


def widths(options: argparse.Namespace) -> dict[str, int]:
    """The width of every choice at which it has as many parameters as the first, as nearly as widths of 4 allow."""
    found: dict[str, int] = {}
    for name in options.choices:
        if not found:
            found[name], wanted = options.width, parameters(name, options.width, options)
            continue
        sizes = {}
        for width in range(8, 4 * options.width, 4):
            # Some blocks want heads of certain widths.
            with contextlib.suppress(InputError):
                sizes[width] = parameters(name, width, options)
        found[name] = min(sizes, key=lambda width: abs(sizes[width] - wanted))
    return found


def parameters(name: str, width: int, options: argparse.Namespace) -> int:
    """How many a choice has at a width."""
    return sum(p.numel() for p in make_task(resolve(groups_of(name, width, options), "signal")).model.parameters())


def step_seconds(width: dict[str, int], options: argparse.Namespace, rounds: int) -> dict[str, float]:
    """CPU seconds of a training step of each choice, the median of steps taken in turns."""
    tasks = {name: make_task(resolve(groups_of(name, w, options), "signal")) for name, w in width.items()}
    optimizers = {name: torch.optim.AdamW(t.model.parameters()) for name, t in tasks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in width}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            before = time.process_time()
            loss, _ = task.loss(task.model, task.batch(turn, slice(0, options.batch)))
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if turn:
                seconds[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(folder: Path, groups: dict[str, Any]) -> dict[str, Any]:
    """Train, unless it is done, and measure: accuracy over SNR, validation loss, CPU seconds."""
    kept = folder / "measured.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    before = time.process_time()
    # One that was ended before it wrote its settings begins again.
    train(groups, folder, resume=(folder / "config.yaml").is_file(), task="signal")
    seconds = time.process_time() - before
    model, _, ran = load_run(folder)
    with torch.inference_mode():
        figures = signal_figures(SignalData(ran.data), model)
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found = {key: figures[key] for key in ("snr", "accuracy", "frames_per_snr")}
    found |= {"val_loss": last["val_loss"], "cpu_seconds": seconds, "steps": groups["train"]["steps"]}
    write_atomically(kept, json.dumps(found) + "\n")
    return found


def rate_of(name: str, width: int, steps: int, options: argparse.Namespace, folder: Path) -> float:
    """The factor on the recipe's rates with the lowest loss after a fifth of the steps, on frames that are all new."""
    if len(options.rates) == 1:
        return options.rates[0]
    losses = {}
    for factor in options.rates:
        short = max(2, round(SHARE * steps))
        groups = groups_of(name, width, options, steps=short, seed=1000, lr=LR * factor, matrix_lr=MATRIX_LR * factor)
        losses[factor] = run(folder / f"rate-{factor:g}", groups)["val_loss"]
    return min(losses, key=lambda factor: losses[factor])


def main(words: list[str] | None = None) -> None:
    options = read(words)
    torch.set_num_threads(1)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="blind-signals-"))
    width = widths(options)
    seconds = step_seconds(width, options, rounds=3 if options.seconds < 5 else 12)
    record: dict[str, Any] = {
        "processor": processor_name(), "torch": torch.__version__, "features": options.features,
        "seconds": options.seconds, "choices": {}, "runs": [],
    }  # fmt: skip
    for name in options.choices:
        steps = max(2, round(options.seconds / seconds[name]))
        factor = rate_of(name, width[name], steps, options, folder / name)
        record["choices"][name] = {
            "d_model": width[name], "parameters": parameters(name, width[name], options), "steps": steps,
            "cpu_seconds_per_step": seconds[name], "rate": factor,
        }  # fmt: skip
        for frames in options.frames:
            for seed in range(options.seeds):
                groups = groups_of(
                    name, width[name], options, steps=steps, seed=seed, lr=LR * factor, matrix_lr=MATRIX_LR * factor
                )
                groups["data"]["train_frames"] = frames
                found = run(folder / name / f"{frames or 'new'}-{seed}", groups)
                record["runs"].append({"choice": name, "train_frames": frames, "seed": seed, **found})
                mean = sum(found["accuracy"]) / len(found["accuracy"])
                size = f"{frames:,} frames" if frames else "new frames"
                print(f"{name}, {size}, seed {seed}: {100 * mean:.1f} % right over all SNRs", flush=True)
                write_atomically(options.out, json.dumps(record, indent=1) + "\n")


def read(words: list[str] | None) -> argparse.Namespace:
    """The words as options."""
    parser = argparse.ArgumentParser(description="Blocks on the blind task over the size of the training set.")
    parser.add_argument("--choices", default=",".join(CHOICES), help="the first one's parameters are the measure")
    parser.add_argument("--frames", default="2000,20000,none", help="sizes of the training set; none: all frames new")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of every run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", default=",".join(map(str, FACTORS)), help="factors on the recipe's rates")
    parser.add_argument("--features", default="none", choices=("none", "cumulants", "spectra", "all"))
    parser.add_argument("--width", type=int, default=64, help="of the first choice")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024, help="samples of a frame")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--val_frames", type=int, default=50, help="per class and SNR")
    parser.add_argument("--folder", help="of the runs, which are kept there; a temporary one when not given")
    parser.add_argument("--out", default="blind_signals.json")
    options = parser.parse_args(words)
    options.choices = options.choices.split(",")
    unknown = [name for name in options.choices if name not in CHOICES]
    if unknown:
        raise InputError(f"--choices: {', '.join(unknown)} unknown; there are {', '.join(CHOICES)}")
    options.frames = [None if word == "none" else int(word) for word in options.frames.split(",")]
    options.rates = [float(word) for word in options.rates.split(",")]
    return options


if __name__ == "__main__":
    main()
