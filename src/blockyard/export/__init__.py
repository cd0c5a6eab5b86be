"""A trained model as one file that other programs run: a graph of torch.export, or ONNX.

    write_pt2("runs/mine", "mine-pt2")       # model.pt2: torch.export.load, torch alone
    write_onnx("runs/mine", "mine-onnx")     # model.onnx: onnxruntime alone (extra onnx)

One graph serves every batch and length. What eager code decides by a length, such as which kernel pays, is decided once
where `torch.compiler.is_exporting()`, and what only weights say is a constant (blockyard.nn.exporting). Nothing is kept
that has not been read again and has not given the model's own numbers, at lengths that were not traced.

Files, in reading order:

    graph.py     what an exported model takes and gives; trace: the graph, of ATen's operators alone
    parity.py    whether a file gives what the model gives, at other batches and lengths
    formats.py   model.pt2 and model.onnx: written, and read again
    write.py     write_pt2 and write_onnx: a run's folder with the file, its tokenizer and what it is

Use it to serve a model where this library is not installed. A graph has no cache: it scores whole rows, and text is
generated faster by blockyard or transformers.

What is exported for which mixer, how to run it, and what is refused: docs/export.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.export.graph import trace as trace
    from blockyard.export.write import write_onnx as write_onnx
    from blockyard.export.write import write_pt2 as write_pt2
else:
    __all__ = exports(
        __name__,
        {
            "graph": "trace",
            "write": "write_onnx write_pt2",
        },
    )
