"""Malicious files for test_malicious.py: each would create a file, the canary, if anything in it ran; and tiny runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blockyard.cli.parser import Parser
from blockyard.cli.tasks import train_command
from blockyard.files import plain
from blockyard.registry.yamlfile import write_yaml
from price_fixtures import ohlcv, write

MODULE = "canary_plugin"


class _Opens:
    """Unpickling this opens the canary for writing, which makes it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def _torch(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": _Opens(canary)}, buffer)
    return buffer.getvalue()


def _npy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Opens(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _npz(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, iq=np.array([_Opens(canary)], dtype=object))
    with zipfile.ZipFile(buffer, "a") as archive:
        # What unpacks this without care writes it beside the folder.
        archive.writestr(f"../{canary.name}", "slipped")
    return buffer.getvalue()


def _parquet(canary: Path) -> bytes:
    """Arrow's extension type that older versions unpickled on reading (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(_Opens(canary)),
    }
    fields = [pa.field("text", pa.string(), metadata=told), pa.field("Close", pa.float64(), metadata=told)]
    table = pa.table({"text": ["a"] * 9, "Close": [1.0] * 9}, schema=pa.schema(fields))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda canary: pickle.dumps(_Opens(canary)),
    "pickle as text": lambda canary: pickle.dumps(_Opens(canary), protocol=0),
    "torch": _torch,
    "npy": _npy,
    "npz": _npz,
    "yaml": lambda canary: f"model: !!python/object/apply:builtins.open ['{canary}', 'w']\n".encode(),
    "parquet": _parquet,
    "json": lambda canary: json.dumps({
        "plugins": [MODULE], "report": MODULE, "classifier": MODULE, "__class__": f"{MODULE}.Canary", "task": MODULE,
        "py/reduce": [{"py/type": "builtins.open"}, {"py/tuple": [str(canary), "w"]}],
    }).encode(),
}  # fmt: skip
# What is most likely to be unpacked by whoever reads a file of that name; all are tried in the slow campaign.
LIKELY = {
    ".yaml": ("yaml", "json"), ".json": ("pickle", "json"), ".jsonl": ("pickle", "json"), ".log": ("pickle", "json"),
    ".safetensors": ("pickle", "torch"), ".tokens": ("pickle", "npy"),
}  # fmt: skip


def payloads_for(name: str, every: bool) -> list[str]:
    """Names of the payloads to put into a file's place."""
    return list(PAYLOADS) if every else list(LIKELY.get(Path(name).suffix, ("pickle",)))


def files_of(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


TRAIN = {
    "steps": 2, "batch_size": 2, "eval_every": 2, "eval_batches": 1, "log_every": 1, "keep": 1, "compile": "off",
    "device": "cpu", "progress": False, "precision": "fp32", "threads": 1,
}  # fmt: skip
MODEL = {"d_model": 8, "n_layers": 1, "n_heads": 2}


def inputs(folder: Path) -> dict[str, Path]:
    """Harmless files that tasks are trained on and that runs are given."""
    text = "".join(f"line {n}: the quick brown fox jumps over {n * n} lazy dogs\n" for n in range(150))
    (folder / "text.txt").write_text(text)
    rows = [f"{'ab' * (i % 9 + 1)} {'cd' * (i % 5)},{'xyz'[i % 3]}" for i in range(60)]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    write(ohlcv(400), folder / "prices.csv")
    np.save(folder / "iq.npy", np.exp(1j * np.arange(64)).astype(np.complex64))
    return {Path(name).stem: folder / name for name in ("text.txt", "rows.csv", "prices.csv", "iq.npy")}


def groups_of(task: str, given: dict[str, Path], cache: Path) -> dict[str, Any]:
    """Options of a run of two steps of a tiny model; KeyError for a task that the campaign does not know."""
    model, data = {
        "lm": ({"context": 16}, {"path": str(given["text"]), "cache_dir": str(cache), "tokenizer": "bpe",
                                 "vocab_size": 300}),
        "classify": ({"context": 16}, {"path": str(given["rows"])}),
        "recall": ({}, {"task": "mqar", "length": 16, "vocab_size": 16, "sizes": (2, 4), "val_rows": 4}),
        "signal": ({}, {"length": 16, "val_frames": 2}),
        "price": ({"context": 16, "patch": 4, "stride": 4, "horizons": (1, 2)}, {"path": (str(given["prices"]),)}),
    }[task]  # fmt: skip
    return {"model": {**MODEL, **model}, "data": data, "train": TRAIN}


def train_by_words(task: str, groups: dict[str, Any], out: Path) -> None:
    """Train as `blockyard train TASK --config FILE` does, without what follows training."""
    file = out.with_suffix(".yaml")
    file.write_text(write_yaml(plain(groups)))
    command, parser = train_command(task, ""), Parser(f"train {task}", "")
    command.add_arguments(parser)
    parser.plain("--plugin", "", action="append", default=[])
    assert command.run(parser.parse(["--config", str(file), "--out", str(out)])) == 0
