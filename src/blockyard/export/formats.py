"""The two files: model.pt2 of torch.export, and model.onnx."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.export.graph import Scorer, blocks_of
from blockyard.export.parity import Run

PT2, ONNX, ABOUT = "model.pt2", "model.onnx", "about.json"
# A protobuf holds no more; weights then stand in a file beside it.
_LARGEST = 2**31 - 2**20


def save_pt2(program: torch.export.ExportedProgram, _: Scorer, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.pt2 into a folder, what it is inside it."""
    torch.export.save(program, folder / PT2, extra_files={ABOUT: json.dumps(about)})


def load_pt2(folder: Path) -> Run:
    """Read model.pt2 as a function of its inputs."""
    module = torch.export.load(folder / PT2).module()
    return lambda inputs: module(*inputs)


def require_onnx() -> None:
    """Refuse at once what would fail when the graph has been traced.

    Raises:
        MissingExtra: naming the extra.
    """
    for module in ("onnx", "onnxscript"):
        require(module, extra="onnx")


def save_onnx(program: torch.export.ExportedProgram, scorer: Scorer, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.onnx into a folder, its weights beside it where they are too many for one file.

    Raises:
        InputError: for an operation that ONNX does not have.
    """
    require_onnx()
    axes = {0: "batch", 1: "length"}
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=list(scorer.inputs),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(scorer.inputs, axes),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        told = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise InputError(f"{blocks_of(scorer.model)} has an operation that ONNX lacks: {told[0]}") from error
    for node in made.model.graph.all_nodes():
        # Names and lines of this library's code, once for every operation.
        node.metadata_props.clear()
    made.model.metadata_props.update({key: str(value) for key, value in about.items()})
    size = sum(each.numel() * each.element_size() for each in [*program.state_dict.values(), *_constants(program)])
    made.save(folder / ONNX, external_data=size > _LARGEST)


def load_onnx(folder: Path) -> Run | None:
    """Read model.onnx by onnxruntime as a function of its inputs; None where that is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    runtime: Any = require("onnxruntime", extra="onnx")
    session = runtime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        (logits,) = session.run(["logits"], {name: each.numpy() for name, each in zip(names, inputs)})
        return torch.from_numpy(logits)

    return run


def _constants(program: torch.export.ExportedProgram) -> list[Tensor]:
    return [each for each in program.constants.values() if isinstance(each, Tensor)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling what it does and which libraries it would know of."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
