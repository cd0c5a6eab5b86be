"""Published methods beside this package's own at equal cache: loss by kind of text, recall, ms per token.

    python benchmarks/transplant_methods.py MODEL --text verse=FILE --text code=FOLDER --out DIR --blocks 'CHOICE;…'

MODEL is a run folder, or anything that `blockyard import` takes. Each kind's text is read from its beginning for the
moments, further on to choose by (`--role select`: a method's own options), and further on to report. Every choice goes
into all layers, and is kept in DIR as soon as it is measured, so that a run may be cut into several: what is there
already is not measured again. `--decode` times choices in turns instead.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from blockyard.files import without_nan, write_atomically
from blockyard.models.lm import TransformerLM
from blockyard.pretrained import load_pretrained
from blockyard.pretrained.folder import read_trained
from blockyard.registry.pattern import split_outside
from blockyard.training.environment import describe_environment
from blockyard.transplant import gather_moments, needs_moments, pieces_of, transplant
from blockyard.transplant.account import Probe, above_original, decode_costs, decode_text, make_probe, text_losses
from blockyard.transplant.measure import recall_losses

ORIGINAL = "original"
# Pieces and their length; tokens of each kind in front of the pieces of a role.
CALIBRATE = (6, 512)
PIECES = {"select": 1, "report": 3}
BEFORE = {"select": 70_000, "report": 80_000}


def read_text(path: Path) -> str:
    """Return a file, or the Python and text files of a folder one after the other."""
    files = [path] if path.is_file() else sorted(path.glob("*.py")) or sorted(path.glob("*.txt"))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def recalled(model: TransformerLM, probe: Probe) -> dict[str, float]:
    """Return the mean loss of the first and of the second copies of all copy tests, in nats per token."""
    pairs = [recall_losses(model, test.text, test.between) for test in probe.copies]
    return {name: float(torch.cat([pair[i] for pair in pairs]).mean()) for i, name in enumerate(("first", "second"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, metavar="KIND=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", required=True, help="choices, with ; between")
    parser.add_argument("--role", choices=list(PIECES), default="report")
    parser.add_argument("--decode", action="store_true", help="time the choices behind full caches, in turns")
    parser.add_argument("--contexts", default="512,2048")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a piece")
    parser.add_argument("--copied", type=int, default=400, help="tokens of the copy test's text")
    parser.add_argument("--apart", type=int, default=600, help="tokens between its copies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    run = (Path(arguments.model) / "config.yaml").is_file()
    found = read_trained(arguments.model) if run else load_pretrained(arguments.model, check=False)
    model, tokenizer = found.model, found.tokenizer
    assert tokenizer is not None
    role, length, tokens = arguments.role, arguments.length, dict[str, Tensor]()
    for kind, _, path in (given.partition("=") for given in arguments.text):
        needed = BEFORE[role] + PIECES[role] * length
        tokens[kind] = torch.tensor(tokenizer.encode(read_text(Path(path))[: 8 * needed])[:needed])
    calibrate = torch.cat([pieces_of(ids, CALIBRATE[1], CALIBRATE[0]) for ids in tokens.values()])
    texts = {kind: pieces_of(ids[BEFORE[role] :], length, PIECES[role]) for kind, ids in tokens.items()}
    probe = make_probe(texts, copied=arguments.copied, apart=(arguments.apart,))
    choices = split_outside(arguments.blocks, ";")

    def made(blocks: str) -> TransformerLM:
        moments = None
        if needs_moments(blocks):
            moments = gather_moments(model, calibrate, path=out / "moments.safetensors")
        return transplant(model, blocks, moments=moments)

    if arguments.decode:
        models = {ORIGINAL: model} | {blocks: made(blocks) for blocks in choices}
        contexts = [int(context) for context in arguments.contexts.split(",")]
        costs = decode_costs(models, decode_text(texts), contexts)
        keep(out / "decode.json", {name: [asdict(cost) for cost in each] for name, each in costs.items()})
        for name, each in costs.items():
            print(name, [(c.context, round(c.ms_per_token, 1), round(c.speed, 2), c.cache_bytes) for c in each])
        return
    before_file = out / f"original-{role}.pt"
    if before_file.is_file():
        before = torch.load(before_file, weights_only=True)
    else:
        before = text_losses(model, texts)
        torch.save(before, before_file)
        recall = recalled(model, probe)
        loss = {kind: float(each.double().mean()) for kind, each in before.items()}
        keep(out / f"original-{role}.json", {"loss": loss, "recall": recall, "environment": environment()})
        print(ORIGINAL, {kind: round(value, 3) for kind, value in loss.items()}, recall, flush=True)
    for blocks in choices:
        path = out / f"{role}-{re.sub(r'[^A-Za-z0-9.]+', '-', blocks).strip('-')}.json"
        if path.is_file():
            continue
        start = time.process_time()
        new = made(blocks)
        fitted = time.process_time()
        above = above_original(text_losses(new, texts), before)
        recall = recalled(new, probe) if role == "report" else {}
        # Over layers, which are alike: numbers of one token.
        numbers = new.new_cache(1).bytes_per_token / 4 / len(new.layers)
        state = {
            "blocks": blocks,
            "numbers_per_token_and_layer": numbers,
            "above": {kind: asdict(each) for kind, each in above.items()},
            "recall": recall,
            "parameters": sum(p.numel() for p in new.parameters()),
            "cpu_seconds": {"fit": fitted - start, "measure": time.process_time() - fitted},
            "environment": environment(),
        }
        keep(path, state)
        words = {kind: str(each) for kind, each in above.items()}
        print(blocks, round(numbers), words, {name: round(value, 2) for name, value in recall.items()}, flush=True)


def environment() -> dict[str, object]:
    return dict(describe_environment(torch.device("cpu"), 1))


def keep(path: Path, what: object) -> None:
    write_atomically(path, json.dumps(without_nan(what), indent=1) + "\n")


if __name__ == "__main__":
    main()
