"""The pictures of the idea of each system, for its page in docs/: computed by the blocks themselves, not drawn by hand.

python benchmarks/idea_pictures.py docs/images            # standard-idea.png, latent-idea.png, …
python benchmarks/idea_pictures.py docs/images --only moe
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from blockyard import get_attention, get_ffn
from blockyard.errors import InputError, require
from blockyard.files import writing
from blockyard.moe import MoE
from blockyard.report.palette import LIGHT
from blockyard.report.render import drawing_style, dress


def standard(axes: Sequence[Any]) -> None:
    """What each of 16 positions sees: everything, a window, a window with sinks."""
    x = torch.randn(1, 16, 32)
    choices = {"everything before it": {}, "window=4": {"window": 4}, "window=4, sinks=2": {"window": 4, "sinks": 2}}
    for ax, (title, options) in zip(axes, choices.items()):
        _, weights = get_attention("standard", d_model=32, n_heads=1, causal=True, **options)(x, return_weights=True)
        ax.imshow(weights[0, 0].detach().sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_xticks(range(0, 16, 5))
        ax.set_xlabel("key")
        ax.set_ylabel("query")


def latent(axes: Sequence[Any]) -> None:
    """What one token leaves behind in the cache of a layer of width 512 with 8 heads, and over a context."""
    choices = {
        "standard, 8 key heads": ("standard", {}),
        "standard, 2 key heads": ("standard", {"n_kv_heads": 2}),
        "mla, kv_rank=256": ("mla", {"kv_rank": 256}),
        "mla, kv_rank=128": ("mla", {"kv_rank": 128}),
    }
    kept = {
        name: get_attention(mixer, d_model=512, n_heads=8, causal=True, **options).cost(1).cache_bytes_per_token
        for name, (mixer, options) in choices.items()
    }
    names = list(kept)[::-1]
    bars = axes[0].barh(
        names, [kept[name] for name in names], color=[LIGHT.series[name.startswith("mla")] for name in names]
    )
    axes[0].bar_label(bars, padding=3)
    axes[0].set_xlim(0, 1.18 * max(kept.values()))
    axes[0].set_title("bytes that a token leaves in the cache of a layer")
    lengths = [0, 8192]
    for index, name in enumerate(kept):
        axes[1].plot(
            lengths, [length * kept[name] / 2**20 for length in lengths], color=LIGHT.series[index], label=name
        )
    axes[1].set_title("MiB of a layer's cache over the context")
    axes[1].set_xlabel("tokens")
    axes[1].legend(frameon=False)


def vein(axes: Sequence[Any]) -> None:
    """The four matrices of a layer of width 768 with 12 heads, to scale: standard, and veins of two ranks."""
    from matplotlib.patches import Rectangle

    for ax, (title, rank) in zip(axes, {"standard, 64 wide": 64, "tva, rank=16": 16, "tva, rank=4": 4}.items()):
        mixer = get_attention("standard", d_model=768, n_heads=12, head_dim=rank, causal=True)
        cost = mixer.cost(1)
        for index, name in enumerate("qkvo"):
            wide, high = (12 * rank, 768) if name != "o" else (768, 12 * rank)
            x, y = (index % 2) * 850, -(index // 2) * 850
            ax.add_patch(Rectangle((x, y), wide, high, color=LIGHT.series[0]))
            ax.add_patch(Rectangle((x, y), 768, 768, fill=False, color=LIGHT.series[5], linestyle=":"))
            ax.text(x + 740, y + 660, name, ha="right", color="white" if rank == 64 else "black")
        ax.set_xlim(-20, 1640)
        ax.set_ylim(-870, 790)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(
            f"{title}\n{cost.parameters / 1e3:,.0f} thousand parameters\n{cost.cache_bytes_per_token:,} bytes a token"
        )


def spectral(axes: Sequence[Any]) -> None:
    """The gates of an untrained causal mixer over frequency, and the kernels over distance that they are."""
    mixer = get_attention("spectral", d_model=64, n_heads=4, causal=True, window=64)
    kernels, lags = mixer.kernels()
    for head in range(4):
        kernel = kernels[head, 0]
        gate = torch.fft.rfft(kernel, 128).abs()
        axes[0].plot(torch.linspace(0, 0.5, len(gate)), gate, color=LIGHT.series[head], label=f"head {head}")
        axes[1].plot(lags, kernel, ".-", color=LIGHT.series[head])
    axes[0].set_title("the gate: how much of each frequency passes")
    axes[0].set_xlabel("frequency, cycles per token")
    axes[0].legend(frameon=False)
    axes[1].set_title("the same as a kernel: weight by distance")
    axes[1].set_xlabel("tokens back")
    axes[1].set_xlim(0, 20)


def complex_numbers(axes: Sequence[Any]) -> None:
    """Outputs of one position for an input and for the same turned by 60 degrees: a complex block, and a real one."""
    turn = torch.polar(torch.tensor(1.0), torch.tensor(torch.pi / 3))
    z = torch.randn(1, 8, 16, dtype=torch.complex64)
    symmetric = get_attention("complex", d_model=16, n_heads=2)
    real = get_attention("standard", d_model=32, n_heads=2)

    def on_parts(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(real(torch.view_as_real(x).flatten(-2))[0].unflatten(-1, (16, 2)).contiguous())

    blocks: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "complex: the output turns with the input": lambda x: symmetric(x)[0],
        "real, on both parts: it does not": on_parts,
    }
    for ax, (title, block) in zip(axes, blocks.items()):
        before, after = block(z)[0, 3].detach(), block(turn * z)[0, 3].detach()
        for start, wanted in zip(before, before * turn):
            ax.plot([start.real, wanted.real], [start.imag, wanted.imag], color="#cccccc", zorder=1)
        ax.scatter(before.real, before.imag, color=LIGHT.series[0], label="f(x)", zorder=3)
        wanted = before * turn
        ax.scatter(
            wanted.real, wanted.imag, s=90, facecolors="none", edgecolors=LIGHT.series[5], label="f(x) turned", zorder=2
        )
        ax.scatter(after.real, after.imag, marker="x", color=LIGHT.series[1], label="f(x turned)", zorder=4)
        ax.set_aspect("equal")
        ax.set_title(title)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def moe(axes: Sequence[Any]) -> None:
    """Where 24 tokens go: the weights that the router gives to 2 of 8 experts."""
    mixture = get_ffn("moe", d_model=32, n_experts=8, k=2)
    assert isinstance(mixture, MoE)
    routing = mixture.router(torch.randn(24, 32) + 0.6 * torch.randn(32), 2)
    weights = torch.zeros(24, 8).scatter_(1, routing.experts, routing.gates.float()).detach()
    axes[0].imshow(weights.T.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes[0].set_title("the weights of 2 of 8 experts for each token")
    axes[0].set_xlabel("token")
    axes[0].set_ylabel("expert")
    axes[1].barh(range(8), (weights > 0).sum(0).tolist(), color=LIGHT.series[0])
    axes[1].axvline(6, color=LIGHT.series[5], linestyle=":")
    axes[1].invert_yaxis()
    axes[1].set_title("tokens of each expert; dotted: equal shares")


# Page -> what draws its picture, and how many panels it has.
PICTURES: dict[str, tuple[Callable[[Sequence[Any]], None], int]] = {
    "standard": (standard, 3),
    "latent": (latent, 2),
    "vein": (vein, 3),
    "spectral": (spectral, 2),
    "complex": (complex_numbers, 2),
    "moe": (moe, 2),
}


def draw(name: str, folder: Path) -> Path:
    """Draw the picture of a page and return its file.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be written.
    """
    require("matplotlib", extra="report")
    from matplotlib.figure import Figure

    make, panels = PICTURES[name]
    torch.manual_seed(0)
    with drawing_style():
        figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor="white")
        axes = list(figure.subplots(1, panels))
        for ax in axes:
            dress(ax, LIGHT)
            ax.grid(False)
        make(axes)
        file = folder / f"{name}-idea.png"
        with writing(file) as stream:
            figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return file


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", choices=sorted(PICTURES), help="one of them")
    arguments = parser.parse_args(argv)
    try:
        for name in [arguments.only] if arguments.only else PICTURES:
            print(draw(name, arguments.folder))
    except InputError as error:
        print(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
