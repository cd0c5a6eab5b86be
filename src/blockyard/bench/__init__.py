"""Benchmarks: blocks timed in turns, with their cache bytes, FLOPs and peak memory.

    a round = a b c, c b a: every contestant once each way; speed relative to the reference is taken within a round, so
    that a machine that slows down slows both; medians and quartiles over the rounds, wall clock and CPU time

    write_bench(bench_decode(DecodeBenchConfig(contexts=(512, 8192))), "bench")

Files, in reading order:

    timing.py    the turns and the clocks
    subject.py   what is timed: the layers of a choice, mixers alone or whole
    blocks.py    bench_blocks: whole sequences, forward and backward, over their length
    decode.py    bench_decode: one more token behind a cache of so many
    roofline.py  the least time that the machine allows, and the share of it that is reached
    memory.py    peak memory of training steps, each choice in a fresh process
    record.py    checks, device and frame of bench.json (schema.py)
    write.py     write_bench and load_bench: JSON, HTML, Markdown, PNG (charts.py)

Use it for costs, which need no training; what a block learns is `compare`'s question. Figures hold for the processor
that they were taken on.

How it times, and every field: docs/benchmarks.md; figures: docs/decoding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.bench.blocks import BlocksBenchConfig as BlocksBenchConfig
    from blockyard.bench.blocks import bench_blocks as bench_blocks
    from blockyard.bench.decode import DecodeBenchConfig as DecodeBenchConfig
    from blockyard.bench.decode import bench_decode as bench_decode
    from blockyard.bench.schema import Bench as Bench
    from blockyard.bench.write import load_bench as load_bench
    from blockyard.bench.write import write_bench as write_bench
else:
    __all__ = exports(
        __name__,
        {
            "blocks": "BlocksBenchConfig bench_blocks",
            "decode": "DecodeBenchConfig bench_decode",
            "schema": "Bench",
            "write": "load_bench write_bench",
        },
    )
