"""Blocks timed."""

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
