"""A picture of a recording: power over time and frequency, with what was found drawn over it.

Columns are means over equal stretches of time. How long a pipe is nobody knows before: when there are too many columns,
every two become one. An hour takes as much memory as a second.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.files import check_writable, user_path, writing
from blockyard.report.fonts import save_figure
from blockyard.tasks.signal.frontend.spectra import averaged
from blockyard.tasks.signal.frontend.votes import Found
from blockyard.tasks.signal.recordings.recording import Recording

BINS = 512
# Where a carrier of power 1 stands in these spectra, dB: two thirds of the bins, by the Hann window.
LINE = 10 * math.log10(BINS * 2 / 3)
# Columns that are kept: between half and all of so many. The picture is about as wide.
MOST_COLUMNS = 2048
DRAWN_COLUMNS = 1024
# Samples of the narrowest column: one window.
LEAST_SAMPLES = BINS
# Windows of a column that are looked at in each block; more do not change what is seen.
MOST_WINDOWS = 64
# What is drawn: the longest, and as many as can be told apart.
MOST_FOUND = 20_000
MOST_DRAWN = 400
INK, PAPER = "#f4f4f2", "#16161a"
COLOURS = (
    "#ffb000", "#56b4e9", "#fe6100", "#35d0a5", "#f0e442", "#dc5fa6", "#9b8cff", "#c7e59b", "#ff8fa3", "#8fd3fe",
    "#b58863", "#d0d0d0", "#3f9b4f", "#7f5fb0", "#e8c3a0",
)  # fmt: skip


class Waterfall:
    """Power over time and frequency.

    Args:
        path: the picture; its suffix says which kind (png, svg, pdf).

    Raises:
        InputError: for a suffix that is none, or a place that cannot be written to.
    """

    def __init__(self, path: Path | str) -> None:
        self._figures = require("matplotlib.figure", extra="report")
        self.path = user_path(path)
        known = self._figures.Figure().canvas.get_supported_filetypes()
        if self.path.suffix.lower().removeprefix(".") not in known:
            raise InputError(f"cannot draw {path}: its name should end in one of .{', .'.join(sorted(known))}")
        check_writable(self.path)
        self._sum = torch.zeros(0, BINS, dtype=torch.float64)
        self._windows = torch.zeros(0)
        self._width = LEAST_SAMPLES
        self._first: int | None = None
        self._stop = 0
        self._found: list[Found] = []
        self._counts: dict[str, int] = {}
        # Of frames of the whole band: which part of each column each class took.
        self._strip: dict[str, Tensor] = {}
        self._peak = torch.zeros(BINS)

    def add(self, start: int, samples: Tensor) -> None:
        """Take in samples: the number of the first, and complex64 [n]."""
        if self._first is None:
            self._first = start
        self._stop = start + len(samples)
        while (self._stop - self._first) > MOST_COLUMNS * self._width:
            self._halve()
        place = 0
        while place + BINS <= len(samples):
            # Whole columns side by side at once; a column that ends in this block by itself.
            column, inside = divmod(start + place - self._first, self._width)
            count = (len(samples) - place) // self._width if inside == 0 else 0
            if count > 0:
                part = samples[place : place + count * self._width].view(count, self._width)
            else:
                part = samples[place : place + self._width - inside][None]
            if part.shape[1] >= BINS:
                self._count(column, part)
            place += part.numel()

    def _count(self, column: int, parts: Tensor) -> None:
        """Add to columns from one on: [columns, samples]."""
        step = max(parts.shape[1] // MOST_WINDOWS, BINS // 2)
        windows = parts.unfold(1, BINS, step)
        shown = averaged(windows.reshape(-1, BINS), BINS).view(len(parts), -1, BINS)
        missing = column + len(parts) - len(self._sum)
        if missing > 0:
            self._sum = torch.cat([self._sum, torch.zeros(missing, BINS, dtype=torch.float64)])
            self._windows = torch.cat([self._windows, torch.zeros(missing)])
        rows = slice(column, column + len(parts))
        self._sum[rows] += shown.sum(1)
        self._windows[rows] += shown.shape[1]
        self._peak = torch.maximum(self._peak, shown.mean(1).amax(0))

    def _halve(self) -> None:
        if len(self._sum) % 2:
            self._sum = torch.cat([self._sum, torch.zeros(1, BINS, dtype=torch.float64)])
            self._windows = torch.cat([self._windows, torch.zeros(1)])
        self._sum = self._sum.view(-1, 2, BINS).sum(1)
        self._windows = self._windows.view(-1, 2).sum(1)
        self._width *= 2
        self._strip = {name: row.view(-1, 2).mean(1) for name, row in self._strip.items()}
        self._strip = {name: torch.nn.functional.pad(row, (0, len(row))) for name, row in self._strip.items()}

    def mark(self, found: Found) -> None:
        """Draw this over the picture, too, if there is room."""
        self._counts[found.label] = self._counts.get(found.label, 0) + found.frames
        if found.lower is None:
            row = self._strip.setdefault(found.label, torch.zeros(MOST_COLUMNS))
            start, stop = ((place - (self._first or 0)) / self._width for place in (found.start, found.stop))
            first, last = int(start), min(int(stop), MOST_COLUMNS - 1)
            row[first : last + 1] += 1
            # Parts of a column at both ends.
            row[first] -= start - first
            row[last] -= last + 1 - stop
        self._found.append(found)
        if len(self._found) > 2 * MOST_FOUND:
            self._found = sorted(self._found, key=lambda f: f.start - f.stop)[:MOST_FOUND]

    def write(self, recording: Recording, title: str) -> None:
        """Draw and write the picture.

        Args:
            recording: the samples, whose rate and centre name the axes.
            title: what stands above it.
        """
        if self._first is None or not len(self._sum):
            raise InputError(f"{recording.name} holds fewer samples than the {BINS} of a column: no waterfall")
        figure = self._figure(recording, title)
        with writing(self.path) as file:
            save_figure(figure, file, format=self.path.suffix.lower().removeprefix("."), dpi=120, facecolor=PAPER)

    def _figure(self, recording: Recording, title: str) -> Any:
        figure = self._figures.Figure(figsize=(15, 7.2), layout="constrained")
        grid = figure.add_gridspec(1, 2, width_ratios=(9, 1), wspace=0.01)
        axes, side = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        shown, width = self._decibels()
        shown = shown - LINE
        values = shown[torch.isfinite(shown)]
        values = values[:: max(len(values) >> 20, 1)]
        # The noise dark, and all but a few of ten thousand cells below the brightest.
        low, high = (float(values.quantile(q)) for q in (0.5, 0.9995))
        low, high = low - 2, max(high, low + 12)
        time, frequency = self._axes(recording)
        extent = (
            0.0,
            len(shown) * width * time[0],
            *(edge * frequency[0] + frequency[2] for edge in (-0.5, 0.5)),
        )
        image = axes.imshow(
            shown.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="inferno", vmin=low, vmax=high,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_xlim(0.0, (self._stop - (self._first or 0)) * time[0])
        axes.set_xlabel(f"time, {time[1]}")
        axes.set_ylabel(frequency[1])
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        self._draw_found(axes, time[0], frequency)
        bins = (torch.arange(BINS) + 0.5) / BINS - 0.5
        height = (bins * frequency[0] + frequency[2]).tolist()
        mean = 10 * (self._sum.sum(0) / self._windows.sum()).clamp(min=1e-30).log10() - LINE
        peak = 10 * self._peak.clamp(min=1e-30).log10() - LINE
        side.plot(
            peak.tolist(),
            height,
            color="#b0653a",
            linewidth=0.8,
            label="peak",
        )
        side.plot(mean.tolist(), height, color=INK, linewidth=1.0, label="mean")
        side.set_ylim(extent[2], extent[3])
        side.set_yticklabels([])
        side.set_xlabel("dB")
        side.legend(loc="upper right", fontsize=7, framealpha=0.3, labelcolor=INK, facecolor=PAPER)
        bar = figure.colorbar(image, ax=[axes, side], pad=0.01, aspect=40)
        bar.set_label(f"power in each of {BINS} bins, dB (a carrier of full scale is 0)", color=INK)
        for place in (axes, side, bar.ax):
            place.set_facecolor(PAPER)
            place.tick_params(colors=INK, labelsize=8)
            place.xaxis.label.set_color(INK)
            place.yaxis.label.set_color(INK)
            for spine in place.spines.values():
                spine.set_color("#55555c")
        side.grid(True, color="#33333a", linewidth=0.5)
        return figure

    def _decibels(self) -> tuple[Tensor, int]:
        """Return power of the columns that are drawn, [columns, bins], NaN where there were no samples; samples of
        each."""
        sums, windows, width = self._sum, self._windows, self._width
        # Of many narrow columns a pixel would show one; together they show less of the noise's scatter.
        while len(sums) > DRAWN_COLUMNS:
            pad = len(sums) % 2
            sums = torch.nn.functional.pad(sums, (0, 0, 0, pad)).view(-1, 2, BINS).sum(1)
            windows = torch.nn.functional.pad(windows, (0, pad)).view(-1, 2).sum(1)
            width *= 2
        power = (sums / windows.clamp(min=1).unsqueeze(1)).clamp(min=1e-30)
        power[windows == 0] = float("nan")
        return 10 * power.log10(), width

    def _axes(self, recording: Recording) -> tuple[tuple[float, str], tuple[float, str, float]]:
        """Return, of the time axis, its unit per sample and its name; of the frequency axis likewise, and where its 0
        lies."""
        rate = recording.sample_rate
        if rate is None:
            return (1.0, "samples"), (1.0, "frequency, cycles per sample", 0.0)
        seconds = (self._stop - (self._first or 0)) / rate
        time = (1e3 / rate, "ms") if seconds < 2 else (1 / rate, "s") if seconds < 600 else (1 / rate / 60, "minutes")
        centres = {span.frequency for span in recording.spans}
        centre = next(iter(centres)) if len(centres) == 1 else None
        if centre is not None:
            size, unit = (1e6, "MHz") if centre >= 1e6 else (1e3, "kHz")
            return time, (rate / size, f"frequency, {unit}", centre / size)
        size, unit = (1e6, "MHz") if rate >= 4e6 else (1e3, "kHz") if rate >= 4e3 else (1.0, "Hz")
        return time, (rate / size, f"frequency beside the centre, {unit}", 0.0)

    def _draw_found(self, axes: Any, per_sample: float, frequency: tuple[float, str, float]) -> None:
        patches = require("matplotlib.patches", extra="report")
        names = sorted(self._counts, key=lambda name: -self._counts[name])
        colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
        total = (self._stop - (self._first or 0)) * per_sample
        chosen = sorted(self._found, key=lambda f: f.start - f.stop)[:MOST_DRAWN]
        for found in sorted(chosen, key=lambda f: f.start):
            left, width = ((n * per_sample) for n in (found.start - (self._first or 0), found.stop - found.start))
            colour, text = colours[found.label], f"{found.label} {found.probability:.2f}"
            box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.65, "pad": 0.8}
            if found.lower is not None and found.upper is not None:
                low, high = (edge * frequency[0] + frequency[2] for edge in (found.lower, found.upper))
                axes.add_patch(
                    patches.Rectangle((left, low), width, high - low, fill=False, edgecolor=colour, linewidth=1.2)
                )
                text += "" if found.snr is None else f", {found.snr:.0f} dB"
                # Above its box, or below it where the band ends.
                is_high = high > frequency[0] * 0.46 + frequency[2]
                axes.annotate(
                    text, (left, low if is_high else high), xytext=(0, -2 if is_high else 2),
                    textcoords="offset points", va="top" if is_high else "bottom", fontsize=7.5, color=colour, bbox=box,
                )  # fmt: skip
            elif width > 0.07 * total:
                # The whole band: a strip along the foot of the picture, named where there is room.
                axes.text(
                    left + 0.003 * total, 0.03, text, transform=axes.get_xaxis_transform(), fontsize=7.5, color=colour,
                    va="bottom", bbox=box,
                )  # fmt: skip
        self._draw_strip(axes, per_sample, names, colours)
        handles = [patches.Patch(color=colours[n], label=f"{n} ({self._counts[n]:,} frames)") for n in names]
        if handles:
            axes.figure.legend(
                handles=handles, loc="outside upper right", ncols=min(len(handles), 8), fontsize=8, facecolor=PAPER,
                labelcolor=INK, edgecolor="none",
            )  # fmt: skip
        boxes = sum(found.lower is not None for found in self._found)
        if boxes > MOST_DRAWN:
            said = f"the {MOST_DRAWN} longest of {boxes:,} bursts drawn"
            axes.text(0.005, 0.99, said, transform=axes.transAxes, fontsize=8, color=INK, va="top")

    def _draw_strip(self, axes: Any, per_sample: float, names: list[str], colours: dict[str, str]) -> None:
        """Colour each column at the foot of the picture by the class that took most of it."""
        known = [name for name in names if name in self._strip]
        if not known:
            return
        taken = torch.stack([self._strip[name] for name in known])
        colour = require("matplotlib.colors", extra="report").to_rgba
        rows = torch.tensor([colour(colours[name]) for name in known])[taken.argmax(0)]
        # Columns without a frame stay clear.
        rows[:, 3] = (taken.sum(0) > 0.05).float()
        place = axes.inset_axes((0, 0, 1, 0.025))
        place.imshow(
            rows[None].numpy(),
            aspect="auto",
            interpolation="nearest",
            extent=(0, MOST_COLUMNS * self._width * per_sample, 0, 1),
        )
        place.set_xlim(axes.get_xlim())
        place.axis("off")
