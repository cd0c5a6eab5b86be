"""The numeric tests on processors that this machine is not: other instruction sets, one thread and two.

    python tests/isa.py [--short] [--processor NAME] [-- PYTEST ARGUMENTS]

A kernel's rounding depends on what the processor offers (AVX2, AVX-512, AMX) and on how work falls to threads, so a
test that holds by luck on one machine is red on another. The libraries below torch can be told to use less than there
is. Where they know none of these variables (arm64) the same tests run several times, which does no harm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# ATen's own kernels without vectors, beside oneDNN and MKL that have them; all three without AVX-512; threads.
PROCESSORS: dict[str, dict[str, str]] = {
    "no vectors, 1 thread": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    "AVX2, 1 thread": AVX2 | {"OMP_NUM_THREADS": "1"},
    "AVX2, 2 threads": AVX2 | {"OMP_NUM_THREADS": "2"},
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
}
# Two threads that wait for one another by spinning take minutes where another process holds a core.
PATIENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
# What computes nothing: words, files, pages, and what stands above the folders. Everything else is numeric, so that a
# new file is in by itself.
WORDS = ("claims", "cli", "machine", "project", "registry", "report", "text", "tune")
# In CI, beside the whole suite as the machine is: the parts whose arithmetic differs most between processors.
SHORT = (
    "latent/test_attention.py", "moe/test_capacity.py", "moe/test_experts.py", "moe/test_mixture.py",
    "moe/test_router.py", "nn/test_fused.py", "nn/test_thin_attention.py", "protocol/test_cache.py",
    "protocol/test_cache_ring.py", "spectral/test_gate.py", "spectral/test_haar.py", "spectral/test_pooling.py",
    "standard/test_attention.py", "vein/test_step.py",
)  # fmt: skip
SHORT_PROCESSORS = ("no vectors, 1 thread", "AVX2, 2 threads")


def numeric_files() -> list[Path]:
    """Every test file in a folder, but those of words."""
    found = [path for path in sorted(TESTS.rglob("test_*.py")) if path.parent != TESTS]
    return [path for path in found if path.relative_to(TESTS).parts[0] not in WORDS]


def short_files() -> list[Path]:
    """The files of the short form; a name that has moved is an error, not a test less."""
    files = [TESTS / name for name in SHORT]
    assert all(file.is_file() for file in files), [str(file) for file in files if not file.is_file()]
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form that CI runs")
    parser.add_argument("--processor", choices=PROCESSORS, help="as on this one alone")
    parser.add_argument("rest", nargs="*", help="arguments for pytest, behind --")
    asked = parser.parse_args()
    files = short_files() if asked.short else numeric_files()
    failed = []
    processors = SHORT_PROCESSORS if asked.short else PROCESSORS
    for name in [asked.processor] if asked.processor else processors:
        begin = time.monotonic()
        workers = ["-n", "2"] if PROCESSORS[name]["OMP_NUM_THREADS"] == "1" else []
        command = [sys.executable, "-m", "pytest", "-m", "not slow", *workers, *asked.rest, *map(str, files)]
        print(f"== {name}", flush=True)
        ended = subprocess.run(command, env=os.environ | PATIENT | PROCESSORS[name], cwd=TESTS.parent).returncode
        print(f"== {name}: {'passed' if ended == 0 else 'FAILED'}, {time.monotonic() - begin:.0f} s", flush=True)
        if ended:
            failed.append(name)
    if failed:
        print(f"failed: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
