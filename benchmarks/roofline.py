"""What this machine can do at best, measured: float32 matrix products and passes over memory.

    python benchmarks/roofline.py

Other benchmarks measure both in the run whose times they compare with them, in the same way as `blockyard bench` does
(`blockyard/bench/roofline.py`): the fastest of some square products, by the library that blocks use here, and the rate
of reading so many bytes again and again. Beside it stands what torch's own product of the same size reaches.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch

from blockyard.bench.roofline import Ceilings, measure_ceilings
from blockyard.bench.timing import Case, Clock, interleave
from blockyard.machine.processor import processor_name

# Numbers of what a half of a block reads and writes: three times 1024 rows of 768, in the processor's last cache.
HELD = 3 * 1024 * 768


@dataclass(frozen=True)
class Rates:
    """Best rates of this process's threads.

    Args:
        gflops: products by the library that the blocks use here, GFLOP/s.
        torch_gflops: products by `torch.mm`.
        gbytes: GB/s of reading as much as half a block reads and writes.
        from_memory: GB/s of reading what no cache holds.
        processor: its name.
    """

    gflops: float
    torch_gflops: float
    gbytes: float
    from_memory: float
    processor: str

    def floor_ms(self, flops: float, numbers: float = 0.0) -> float:
        """Return the least milliseconds for so many FLOPs, and so many float32 numbers read or written beside."""
        return 1e3 * (flops / (1e9 * self.gflops) + 4 * numbers / (1e9 * self.gbytes))


def rates(dtype: torch.dtype = torch.float32) -> Rates:
    """Measure them in about two seconds."""
    device = torch.device("cpu")
    ceilings = measure_ceilings(dtype, device)
    # By either library the same product: the greater rate is the machine's.
    theirs = _torchs_own(ceilings, dtype)
    reading = [ceilings.bytes_per_second(size) / 1e9 for size in (4 * HELD, ceilings.reading[-1][0])]
    best = max(ceilings.flops_per_second / 1e9, theirs)
    return Rates(best, theirs, *reading, processor_name())


def _torchs_own(ceilings: Ceilings, dtype: torch.dtype) -> float:
    """Return GFLOP/s of `torch.mm` where products were fastest."""
    side = ceilings.side
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)

    def run(units: int) -> None:
        with torch.no_grad():
            for _ in range(units):
                torch.mm(a, b.mT)

    times = interleave({"mm": Case(run)}, Clock(torch.device("cpu")), rounds=5, round_seconds=0.02)
    return 2 * side**3 / min(ceilings.seconds(times["mm"])) / 1e9


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(rates()), indent=1))
