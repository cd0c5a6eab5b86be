"""Memory does not grow with a recording: frames in a row, and bursts among them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("scipy.signal", reason="extra signals")

# Runs by itself, so that nothing else counts: the peak of the process after a part of the stream, and after all of it.
STREAM = """
import io, resource, sys
import numpy as np, torch
from blockyard.tasks.kind import ClassifyOptions
from blockyard.tasks.signal.bursts import burst_rows
from blockyard.tasks.signal.frames import frame_rows
from blockyard.tasks.signal.model import SignalConfig, SignalTransformer
from blockyard.tasks.signal.recordings.opening import RecordingOptions
from blockyard.tasks.signal.recordings.raw import RawPipe, raw_type
from blockyard.tasks.signal.recordings.recording import Recording, Span
from blockyard.tasks.signal.session import Session
from blockyard.tasks.signal.task import SignalAssets
from blockyard.tasks.signal.config import SignalDataConfig

torch.set_num_threads(1)
TOTAL, EARLY = 12 << 20, 4 << 20
drawn = np.random.default_rng(0)
part = drawn.normal(128, 20, 2 << 18)
part[: 1 << 18 : 2] += 40 * np.cos(0.7 * np.arange(1 << 17))  # a burst in every part, as long as half of it
part = np.clip(part, 0, 255).astype("u1").tobytes()

class Pipe(io.RawIOBase):
    given = 0
    def read(self, size=-1):
        place = self.given % len(part)
        piece = part[place : place + min(size, 1 << 16)] if self.given < 2 * TOTAL else b""
        self.given += len(piece)
        return piece

detect = sys.argv[1] == "bursts"
config = SignalConfig(frame=1024, n_classes=3, patch=256, d_model=8, n_heads=1, samples="raw", features="none")
model = SignalTransformer(config).eval()
class Run: pass
run = Run()
run.data = SignalDataConfig()
pipe = Recording("pipe", "raw", RawPipe(Pipe(), raw_type("cu8"), "pipe"), (Span(0, None),), 2e6)
options = ClassifyOptions(detect=detect, waterfall=sys.argv[2])
assets = SignalAssets(("a", "b", "c"), 1024, 0)
early = rows = 0
done = 0
def progress(what, count, total):
    global early, done
    done = count
    if not early and count >= EARLY:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Session((model, assets, run), pipe, RecordingOptions("cu8"), options, progress, []) as session:
    for row in (burst_rows if detect else frame_rows)(session):
        rows += 1
late = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert done == TOTAL, done
print(rows, early, late)
"""


@pytest.mark.parametrize("what", ["frames", "bursts"])
def test_memory_is_flat_over_a_pipe(tmp_path, what):
    pytest.importorskip("matplotlib", reason="extra report")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, what, str(tmp_path / "w.png")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows, early, late = map(int, done.stdout.split())
    assert rows >= (12 << 20) // 1024 if what == "frames" else rows >= 20
    # Kilobytes: 8 million samples later, 67 MB of them as complex numbers, at most a few blocks more.
    assert late - early < 25_000, (early, late)
