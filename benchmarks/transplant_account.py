"""What other blocks in a trained model cost and save, choice by choice: the figures of docs/transplant.md.

    python benchmarks/transplant_account.py MODEL --text verse=FILE --text code=FOLDER --out DIR [--choose NAME,…]

Texts are read from their beginning for the moments, and further on for what is reported. Every choice is kept in DIR as
soon as it is measured, so that a run may be cut into several; the last one writes the report of all.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from blockyard.compare.peak_memory import status_bytes
from blockyard.files import without_nan, write_atomically
from blockyard.pretrained import load_pretrained
from blockyard.training.environment import describe_environment
from blockyard.transplant import gather_moments, needs_moments, pieces_of, transplant
from blockyard.transplant import record as records
from blockyard.transplant.account import (
    CONTEXTS,
    decode_costs,
    decode_text,
    layer_rows,
    make_probe,
    measure,
    text_losses,
)

ORIGINAL = "original"
# Name: blocks, and the layers ("all" or every second one).
CHOICES = {
    "window half": ("standard[window=256,sinks=4]", "half"),
    "mla 128+64": ("mla[kv_rank=128,rope_dim=64]", "all"),
    "rotary PCA": ("standard[n_kv_heads=1,head_dim=144,v_dim=192]", "all"),
    "thin 48/64": ("standard[head_dim=48,v_dim=64]", "all"),
    "thin 32/32": ("standard[head_dim=32,v_dim=32]", "all"),
    "vein 384": ("vft[rank=384]", "all"),
    "vein 256": ("vft[rank=256]", "all"),
    "mla 208+80": ("mla[kv_rank=208,rope_dim=80]", "all"),
    "mla 192+64": ("mla[kv_rank=192,rope_dim=64]", "all"),
    "values 48": ("standard[v_dim=48]", "all"),
    "values 32": ("standard[v_dim=32]", "all"),
    "keys 48": ("standard[head_dim=48]", "all"),
    "keys 32": ("standard[head_dim=32]", "all"),
    "window half, no sinks": ("standard[window=256]", "half"),
}
# Timed in turns with the original; the others' costs follow from their widths.
TIMED = ("window half", "mla 128+64", "rotary PCA")
CALIBRATE, REPORT = (6, 512), (4, 1024)
# Tokens of each kind between what the moments saw and what is reported.
BETWEEN = 60_000


def read_text(path: Path) -> str:
    """Return a file, or the Python and text files of a folder one after the other."""
    files = [path] if path.is_file() else sorted(path.glob("*.py")) or sorted(path.glob("*.txt"))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, metavar="KIND=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--choose", default="", help="names of choices, with commas; 'decode' times them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    began, spent = time.perf_counter(), {}
    found = load_pretrained(arguments.model, check=False)
    model, tokenizer = found.model, found.tokenizer
    assert tokenizer is not None
    tokens = {}
    for kind, _, path in (given.partition("=") for given in arguments.text):
        needed = BETWEEN + REPORT[0] * REPORT[1]
        tokens[kind] = torch.tensor(tokenizer.encode(read_text(Path(path))[: 8 * needed])[:needed])
    calibrate = torch.cat([pieces_of(ids, CALIBRATE[1], CALIBRATE[0]) for ids in tokens.values()])
    probe = make_probe({kind: pieces_of(ids[BETWEEN:], REPORT[1], REPORT[0]) for kind, ids in tokens.items()})
    names = [name for name in arguments.choose.split(",") if name]

    def kept(name: str) -> Path:
        return out / f"{name.replace('/', '-')}.json"

    def keep(name: str, what: object) -> None:
        write_atomically(kept(name), json.dumps(without_nan(what), indent=1) + "\n")

    losses_file = out / "original.pt"
    if kept(ORIGINAL).is_file():
        original_losses = torch.load(losses_file, weights_only=True)
    else:
        start = time.process_time()
        original_losses = text_losses(model, probe.texts)
        measured = measure(model, probe, tokenizer, losses=original_losses)
        out.mkdir(parents=True, exist_ok=True)
        torch.save(original_losses, losses_file)
        keep(ORIGINAL, asdict(measured) | {"cpu": time.process_time() - start})
        print(ORIGINAL, measured.loss, [round(r.second, 3) for r in measured.recall], flush=True)

    def made(name: str) -> torch.nn.Module:
        blocks, where = CHOICES[name]
        moments = None
        if needs_moments(blocks):
            ffns = blocks.startswith("vft")
            start = time.process_time()
            path = out / f"moments{'-ffns' if ffns else ''}.safetensors"
            moments = gather_moments(model, calibrate, path=path, ffns=ffns)
            spent["moments"] = time.process_time() - start
        layers = "all" if where == "all" else range(1, len(model.layers), 2)
        start = time.process_time()
        new = transplant(model, blocks, layers=layers, moments=moments)
        spent["fit"] = time.process_time() - start
        return new

    for name in names:
        if name == "decode":
            start = time.process_time()
            models = {ORIGINAL: model} | {each: made(each) for each in TIMED}
            costs = decode_costs(models, decode_text(probe.texts), CONTEXTS, say=lambda line: print(line, flush=True))
            keep("decode", {n: [asdict(d) for d in c] for n, c in costs.items()})
            for n, c in costs.items():
                print(n, [(d.context, round(d.ms_per_token, 1), d.word, d.cache_bytes) for d in c], flush=True)
            print("decode took", time.process_time() - start, flush=True)
        else:
            new = made(name)
            start = time.process_time()
            measured = measure(new, probe, tokenizer, original=original_losses)
            spent["measure"] = time.process_time() - start
            rows = layer_rows(new, model)
            keep(name, {"measures": asdict(measured), "rows": [asdict(r) for r in rows], "cpu": dict(spent)})
            above = {kind: str(d) for kind, d in measured.above.items()}
            seconds = {stage: round(each) for stage, each in spent.items()}
            print(name, above, [round(r.second, 3) for r in measured.recall], measured.parameters, seconds, flush=True)

    def load(cls: type, value: object) -> object:
        return records.made_from(cls, value)

    costs = json.loads(kept("decode").read_text()) if kept("decode").is_file() else {}
    choices = []
    for name, (blocks, _) in CHOICES.items():
        if not kept(name).is_file():
            continue
        state = json.loads(kept(name).read_text())
        measures = state["measures"] | {"decode": costs.get(name, [])}
        rows = tuple(load(records.LayerRow, row) for row in state["rows"])
        choice = {"name": name, "blocks": blocks, "layers": [row.layer for row in rows if row.changed]}
        choices.append(
            load(records.Choice, choice | {"rows": state["rows"], "measures": measures, "cpu_seconds": state["cpu"]})
        )
    before = json.loads(kept(ORIGINAL).read_text())
    took = before.pop("cpu")
    kinds = [
        records.TextSet(kind, (path,), CALIBRATE[0] * CALIBRATE[1], 0, REPORT[0] * REPORT[1])
        for kind, _, path in (given.partition("=") for given in arguments.text)
    ]
    record = records.Record(
        model=Path(arguments.model).name,
        layers=len(model.layers),
        d_model=model.config.d_model,
        texts=tuple(kinds),
        piece_length=REPORT[1],
        first_token=False,
        budget_loss=None,
        budget_cache=None,
        context=CONTEXTS[-1],
        original=load(records.Measures, before | {"decode": costs.get(ORIGINAL, [])}),
        choices=tuple(choices),
        command="python benchmarks/transplant_account.py",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began,
        cpu_seconds={"measuring the original": took},
        peak_bytes=status_bytes("VmHWM"),
        environment=describe_environment(torch.device("cpu"), 1),
    )
    records.save_record(record, out)


if __name__ == "__main__":
    main()
