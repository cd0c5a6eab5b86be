"""Many prompts whose outputs differ in length: rows that come and go, a padded batch, one by one, and transformers.

    python benchmarks/many_prompts.py [--model FOLDER] [--prompts 64] [--tokens 16,128] [--rounds 3] [--out FILE.json]

Greedy, one thread, process CPU time, in turns within one process. --model is a pretrained model in the format of
Hugging Face; without it a small model of random weights stands in, beside itself alone. Every prompt has its own limit
of new tokens, spread evenly between the two ends of --tokens; tokens beyond a row's limit count for nothing. "one
padded batch" writes all rows until the last one ends, which is what transformers' generate does.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blockyard.generation import Batch, SamplingConfig, generate, generate_batch
from blockyard.machine.processor import processor_name
from blockyard.models.lm import LMConfig, TransformerLM, build_lm
from blockyard.models.order import randomise

GREEDY = SamplingConfig(temperature=0)
Run = Callable[[], list[list[int]]]


def own_model() -> TransformerLM:
    """Return a small model of random weights."""
    model = build_lm(LMConfig(4096, context=512, d_model=256, n_layers=6, n_heads=8), seed=0)
    randomise(model)
    with torch.no_grad():
        # Far enough apart that rounding decides nothing.
        model.lm_head.weight.mul_(4.0)
    return model.eval()


def ours(model: TransformerLM, prompts: list[list[int]], limits: list[int], sizes: list[int]) -> dict[str, Run]:
    """Return our ways by name."""

    def alone() -> list[list[int]]:
        each = zip(prompts, limits)
        return [list(generate(model, ids, max_new_tokens=most, sampling=GREEDY)) for ids, most in each]

    def padded() -> list[list[int]]:
        rows = generate_batch(model, prompts, max_new_tokens=max(limits), sampling=GREEDY, batch_size=len(prompts))
        return [row[:most] for row, most in zip(rows, limits)]

    def continuous(size: int) -> Run:
        return lambda: generate_batch(model, prompts, max_new_tokens=limits, sampling=GREEDY, batch_size=size)

    runs: dict[str, Run] = {"one by one": alone, "one padded batch": padded}
    return runs | {f"rows that come and go, {size} at a time": continuous(size) for size in sizes}


def theirs(folder: str, prompts: list[list[int]], limits: list[int], continuous: bool) -> dict[str, Run]:
    """Return the ways of transformers by name."""
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

    transformers.utils.logging.set_verbosity_error()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = torch.tensor(limits) + longest
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    class Limits(StoppingCriteria):  # type: ignore[misc]
        """Ends each row at its own limit."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
            return input_ids.shape[1] >= ends

    def alone() -> list[list[int]]:
        out = []
        for prompt, most in zip(prompts, limits):
            row = torch.tensor([prompt])
            given = {"attention_mask": torch.ones_like(row), "max_new_tokens": most, **options}
            out.append(model.generate(row, **given)[0, len(prompt) :].tolist())
        return out

    def padded() -> list[list[int]]:
        stop = StoppingCriteriaList([Limits()])
        given = {"attention_mask": mask, "max_new_tokens": max(limits), "stopping_criteria": stop, **options}
        rows = model.generate(ids, **given)[:, longest:].tolist()
        return [row[:most] for row, most in zip(rows, limits)]

    def paged() -> list[list[int]]:
        # One limit for all: its requests have no other. Ends beyond a row's own are cut off, and paid for.
        config = GenerationConfig(max_new_tokens=max(limits), **options)
        found = model.generate_batch(inputs=prompts, generation_config=config)
        rows = [found[name].generated_tokens for name in sorted(found, key=lambda name: int(name.rsplit("_", 1)[-1]))]
        return [list(row)[:most] for row, most in zip(rows, limits)]

    runs = {"transformers, one by one": alone, "transformers, one padded batch": padded}
    return runs | ({"transformers, continuous batching": paged} if continuous else {})


def prompts_of(tokenizer: Any, count: int, vocabulary: int, least: int, most: int) -> list[list[int]]:
    """Return prompts of `least` to `most` tokens: pieces of this file, or random ones without a tokenizer."""
    rng = random.Random(0)
    lengths = [rng.randrange(least, most + 1) for _ in range(count)]
    if tokenizer is None:
        return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]
    text = tokenizer.encode(Path(__file__).read_text(encoding="utf-8"))
    return [text[start : start + n] for n in lengths for start in [rng.randrange(len(text) - n)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a pretrained model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--lengths", default="8,64", help="fewest and most tokens of a prompt")
    parser.add_argument("--tokens", default="16,128", help="fewest and most new tokens of a prompt")
    parser.add_argument("--sizes", default="16,32,64", help="rows at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", default="one by one", help="ways that are timed once alone: their name's ending")
    parser.add_argument("--leave_out", default="", help="ways that are not run: names' beginnings, by semicolons")
    parser.add_argument("--continuous", action="store_true", help="transformers' continuous batching, too")
    parser.add_argument("--out", help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = None
    if options.model:
        from blockyard.pretrained import load_pretrained

        found = load_pretrained(options.model)
        model, tokenizer = found.model.eval(), found.tokenizer
    else:
        model = own_model()
    prompts = prompts_of(tokenizer, options.prompts, model.config.vocab_size, *map(int, options.lengths.split(",")))
    least, most = map(int, options.tokens.split(","))
    limits = [least + round((most - least) * i / max(1, len(prompts) - 1)) for i in range(len(prompts))]
    random.Random(1).shuffle(limits)
    runs = ours(model, prompts, limits, [int(size) for size in options.sizes.split(",")])
    if options.model:
        runs |= theirs(options.model, prompts, limits, options.continuous)
    skipped = tuple(name for name in options.leave_out.split(";") if name)
    runs = {name: run for name, run in runs.items() if not (skipped and name.startswith(skipped))}
    times: dict[str, list[float]] = {name: [] for name in runs}
    texts: dict[str, list[list[int]]] = {}
    with torch.no_grad():
        generate_batch(model, prompts[:2], max_new_tokens=2, sampling=GREEDY)
        for number in range(options.rounds):
            for name, run in runs.items():
                if number and name.endswith(options.once):
                    continue
                start = time.process_time()
                texts[name] = run()
                times[name].append(time.process_time() - start)
                print(f"round {number + 1}: {name}: {times[name][-1]:.1f} CPU-s", flush=True)
    total, expected = sum(limits), texts.get("one by one")
    rows = []
    for name, spent in times.items():
        seconds = statistics.median(spent)
        same = None if expected is None else sum(a == b for a, b in zip(texts[name], expected))
        rows.append({"way": name, "seconds": spent, "tokens_per_second": total / seconds, "rows_as_one_by_one": same})
        print(f"{name:45s} {seconds:8.2f} CPU-s {total / seconds:8.1f} tokens/CPU-s  {same} of {len(prompts)} the same")
    batch = Batch(model, prompts, max_new_tokens=limits, sampling=GREEDY)
    record = {
        "processor": processor_name(),
        "torch": torch.__version__,
        "model": options.model or "own, 6 layers of 256",
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": total,
        "limits": [least, most],
        "ways": rows,
        "notes": batch.notes,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
