"""CPU seconds that each command costs before it does anything: user + system time of a fresh process.

Run with the interpreter that has blockyard installed: `python benchmarks/startup.py --out startup.json`.
Bars: `blockyard --help` 0.6 s, `blockyard train lm --help` 2 s, `import blockyard` 0.2 s above `import torch`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

CASES = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import blockyard": ["-c", "import blockyard"],
    "import blockyard and use it": ["-c", "import blockyard.models; blockyard.models.TransformerLM"],
    "blockyard --version": ["-m", "blockyard", "--version"],
    "blockyard --help": ["-m", "blockyard", "--help"],
    "blockyard train lm --help": ["-m", "blockyard", "train", "lm", "--help"],
    "blockyard generate --help": ["-m", "blockyard", "generate", "--help"],
    "blockyard compare lm --help": ["-m", "blockyard", "compare", "lm", "--help"],
    "blockyard list": ["-m", "blockyard", "list"],
    "blockyard train lm with an unknown option": ["-m", "blockyard", "train", "lm", "--modle.d_model", "64"],
}
STATUS = {"blockyard train lm with an unknown option": 2}
BARS = {"blockyard --help": 0.6, "blockyard train lm --help": 2.0}


def cpu_seconds(words: list[str], status: int) -> float:
    """User + system seconds of one child process, which must end with the given status."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, ended, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise SystemExit(f"python {' '.join(words)} exited with status {process.returncode}, not {status}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CASES}
    # Round by round, so that a slower minute of the machine hits every case alike.
    for _ in range(arguments.repeats):
        for name, words in CASES.items():
            times[name].append(cpu_seconds(words, STATUS.get(name, 0)))
    result = {
        "unit": "CPU seconds of a fresh process, user + system",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "repeats": arguments.repeats,
        "cases": {
            name: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
                **({"bar": BARS[name], "met": statistics.median(values) <= BARS[name]} if name in BARS else {}),
            }
            for name, values in times.items()
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
