"""The signal model: frames of complex samples in, the modulation of each frame or the symbols in it out.

Blocks are chosen by pattern as in every model, real or complex. If any layer is complex the residual stream is, and
the model keeps the phase symmetry as long as all layers do and the head reads magnitudes; a real layer among complex
ones works on their real and imaginary parts side by side, twice as wide, and ends the symmetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.complex.linear import (
    COMPLEX_DTYPES,
    ComplexModule,
    magnitude,
    to_pairs,
)
from blockyard.errors import InputError, at_least, one_of
from blockyard.models.config import BlocksConfig
from blockyard.models.trunk import Trunk
from blockyard.nn.dropout import Dropout
from blockyard.nn.norms import widened
from blockyard.protocol.block import build_block
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.registry.pattern import LayerSpec
from blockyard.registry.register import implementation
from blockyard.tasks.signal.condition import SnrModulation, check_snr
from blockyard.tasks.signal.features import Features, features_of, width_of
from blockyard.tasks.signal.layers import JOINED, ComplexStem, Head, Joint, OnParts, RealStem
from blockyard.tasks.signal.receiver import SYMBOLS, receive

# Samples of the shortest frame that a blind receiver makes anything of.
LEAST_FRAME = 256
# Frames of one forward pass when a model is examined.
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class SignalConfig(BlocksConfig):
    """The architecture of a signal model.

    Args:
        frame: samples per frame; 0 as long as the data have not said it.
        n_classes: classes of a frame, or of a symbol.
        symbols: symbols per frame that are told apart; 0 classifies whole frames.
        ordered: whether the order of a frame's samples tells anything.
        blocks: the layers, as a choice (`"complex"`, `"complex*2/standard[rope=none]"`); fewer than n_layers repeat.
        d_model: width of the residual stream; of complex numbers where a layer is complex.
        n_layers: number of blocks.
        n_heads: number of attention heads, dividing d_model.
        patch: samples (or received symbols) per position of the blocks, dividing the frame; None = the samples of a
            symbol where symbols are told apart, 16 of a blind frame, 4 received symbols, else 1.
        positions: whether blocks see where a sample stands: yes, as each layer's rope says; no, which sets rope=none;
            auto is no for modulations at one sample per symbol without fading and carrier offset and for symbols
            received at a known rate, yes for all else.
        normalise: bring every frame to unit power first, for recordings of unknown scale; frames of the blind scenario
            and of the unlocked one always are.
        features: what the head reads beside the blocks, computed without weights: cumulants of the symbols, spectra (of
            powers of samples and symbols, histograms of envelope and frequency), all, or none; auto is all in the blind
            scenario, else none.
        samples: what the blocks see: raw samples, or the symbols that a receiver without weights reads of the frame
            (received; 256 of blind frames); auto is received where phase and timing alone are unknown, else raw.
        blind: whether the data are of the blind scenario.
        known_rate: samples per symbol, where a receiver knows them and that the carrier lies at 0; 0 where it does not.
        condition: what the model is told beside the samples: none, or snr, the SNR of each frame in dB (Es/N0), as a
            receiver that has measured its noise knows it.
        readout: what the head sees of a complex stream: magnitude (blind to a rotation of the frame), parts (real and
            imaginary ones; symbols need it), or auto, as the target needs it.
        norm: rms, layer, or for complex layers whiten.
        norm_position: pre (norm before each sublayer, and a last one), post (after each addition) or branch (on what
            each sublayer adds, and a last one).
        dropout: probability of dropping, for the embedding and for every mixer and FFN that has dropout.
        rope_theta: base of the rotary wavelengths.
        zero_init_outputs: start every block as the identity and every output at 0.
    """

    # What auto comes to for the frames of versions before is what they had: raw samples, and no features.
    older: ClassVar[Mapping[str, Any]] = MappingProxyType({"features": "auto", "samples": "auto"})

    frame: int = 128
    n_classes: int = 6
    symbols: int = 0
    ordered: bool = True
    blind: bool = False
    known_rate: int = 0
    d_model: int = 64
    n_layers: int = 1
    patch: int | None = None
    positions: Literal["auto", "yes", "no"] = "auto"
    normalise: bool = False
    features: Literal["auto", "none", "cumulants", "spectra", "all"] = "auto"
    samples: Literal["auto", "raw", "received"] = "auto"
    condition: Literal["none", "snr"] = "none"
    readout: Literal["auto", "magnitude", "parts"] = "auto"
    norm: Literal["rms", "layer", "whiten"] = "rms"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("n_classes")
        at_least(0, **{"model.frame": self.frame})
        if self.patch is not None:
            self.check_at_least_one("patch")
        if self.positions not in ("auto", "yes", "no"):
            raise InputError(f"model.positions={self.positions!r} should be auto, yes or no")
        if self.condition not in ("none", "snr"):
            raise InputError(f"model.condition={self.condition!r} should be none or snr")
        one_of(("auto", "none", "cumulants", "spectra", "all"), **{"model.features": self.features})
        one_of(("auto", "raw", "received"), **{"model.samples": self.samples})
        if self.symbols and (self.is_received or self.feature_kinds != "none"):
            raise InputError(
                "model.features and model.samples=received are for whole frames: leave them out for symbols"
            )
        # Of no frame nothing is left over: what a patch should divide is asked again when the data have said it.
        if self.seen % self.samples_per_position:
            what = f"the {self.seen} received symbols" if self.is_received else f"the frame of {self.frame} samples"
            raise InputError(f"model.patch={self.patch} should divide {what}")
        if self.symbols and self.symbols % self.length:
            raise InputError(
                f"model.patch={self.patch} makes {self.length} positions of a frame with {self.symbols} symbols; every "
                f"position should hold as many whole symbols: leave it out for {self.frame // self.symbols}, the "
                "samples of one, or give a multiple"
            )

    @property
    def samples_per_position(self) -> int:
        """Samples of a frame that one position of the blocks holds."""
        if self.patch is not None:
            return self.patch
        if self.is_received:
            return 1 if self.known_rate else 4
        if self.suits_receiver and self.frame % 16 == 0:
            return 16
        return max(self.frame // self.symbols, 1) if self.symbols else 1

    @property
    def length(self) -> int:
        """Positions of a frame."""
        return self.seen // self.samples_per_position

    @property
    def decided(self) -> dict[str, Any]:
        return {"features": self.features, "samples": self.samples}

    @property
    def is_received(self) -> bool:
        """Whether the blocks see symbols that a receiver has read."""
        return self.samples == "received" or (self.samples == "auto" and self.known_rate > 0)

    @property
    def suits_receiver(self) -> bool:
        """Whether frames are long enough, and so little known, that a blind receiver comes first."""
        return self.blind and not self.symbols and self.frame >= LEAST_FRAME

    @property
    def feature_kinds(self) -> Features:
        """The features that the head reads."""
        if self.features == "auto":
            return "all" if self.suits_receiver or self.known_rate else "none"
        return self.features

    @property
    def normalises(self) -> bool:
        """Whether frames are brought to unit power."""
        return self.normalise or self.blind or self.known_rate > 0

    def check_frame(self) -> None:
        """Refuse frames that are too short for a receiver; asked when the frame is known.

        Raises:
            InputError: for those, and for a frame of no samples.
        """
        self.check_at_least_one("frame")
        if (self.is_received or self.feature_kinds != "none") and self.frame < LEAST_FRAME and not self.known_rate:
            raise InputError(
                f"model.features and model.samples=received need frames of {LEAST_FRAME} samples, not {self.frame}"
            )

    @property
    def seen(self) -> int:
        """Samples of a frame that the blocks see, in patches."""
        if not self.is_received:
            return self.frame
        return self.frame // self.known_rate if self.known_rate else SYMBOLS

    @property
    def is_causal(self) -> bool:
        """Every position sees the whole frame."""
        return False

    @property
    def is_complex(self) -> bool:
        """Whether the residual stream is complex: when any layer is."""
        return any(_is_complex(spec) for spec in self.pattern)

    @property
    def has_positions(self) -> bool:
        """Whether blocks see where a sample stands."""
        if self.positions == "auto" and self.is_received and self.known_rate:
            # Each is a symbol of its own in noise.
            return False
        return self.ordered if self.positions == "auto" else self.positions == "yes"

    @property
    def is_ordered(self) -> bool:
        return self.has_positions

    @property
    def reads_magnitudes(self) -> bool:
        """Whether the head sees magnitudes only."""
        if self.readout == "auto":
            return self.is_complex and not self.symbols
        return self.is_complex and self.readout == "magnitude"

    def build_block(self, spec: LayerSpec) -> Any:
        """Construct one layer; a real one in a complex stream works on its parts."""
        if not self.has_positions:
            spec = _without_positions(spec)
        own = _is_complex(spec)
        apart = self.is_complex and not own
        block = build_block(
            spec,
            d_model=2 * self.d_model if apart else self.d_model,
            n_heads=self.n_heads,
            causal=self.is_causal,
            norm=self.norm,
            norm_position=self.norm_position,
            norm_eps=self.norm_eps,
            parallel=self.parallel,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            dropout=self.dropout,
            complex_valued=own,
        )
        return OnParts(block) if apart else block


def _is_complex(spec: LayerSpec) -> bool:
    return implementation("attn", spec.attn).traits.complex_valued


def _without_positions(spec: LayerSpec) -> LayerSpec:
    """Return the layer with rope=none, if its mixer can do without."""
    option = implementation("attn", spec.attn).options.get("rope")
    if option is None or "none" not in option.choices:
        return spec
    return replace(spec, attn_options={**spec.attn_options, "rope": "none"})


@dataclass
class SignalOutput:
    """What the model returns.

    Args:
        logits: [B, n_classes], or [B, symbols, n_classes].
        loss: mean cross-entropy in nats, when targets were given.
        aux: what the blocks have to say, as `Trunk.through_blocks` gives it.
        features: [B, width], what the head reads of whole frames; None for symbols.
    """

    logits: Tensor
    loss: Tensor | None = None
    aux: dict[str, Any] | None = None
    features: Tensor | None = None


class SignalTransformer(Trunk, ComplexModule):
    """Classifies frames of complex samples, or the symbols in them, over any registered blocks.

    `SignalTransformer(SignalConfig(blocks="complex", frame=128, n_classes=6))`

    Args:
        config: the architecture.

    Shapes: iq complex [B, frame] -> logits [B, n_classes], or [B, symbols, n_classes].
    """

    config: SignalConfig

    def __init__(self, config: SignalConfig) -> None:
        super().__init__(config)
        config.check_frame()
        self.complex_valued = config.is_complex
        self.stem = (ComplexStem if self.complex_valued else RealStem)(config.samples_per_position, config.d_model)
        known = config.condition == "snr"
        self.stem_snr = SnrModulation(config.d_model, shift=not self.complex_valued) if known else None
        self.dropout = Dropout(config.dropout)
        self.build_blocks()
        parts = 2 if self.complex_valued and not config.reads_magnitudes else 1
        width = parts * config.d_model
        self.joint = Joint(width, width_of(config.feature_kinds)) if config.feature_kinds != "none" else None
        width = width if self.joint is None else JOINED
        self.head_snr = SnrModulation(width, shift=True) if known else None
        per_position = config.symbols // config.length if config.symbols else 1
        self.head = Head(width, per_position * config.n_classes, bias=True)
        if config.zero_init_outputs:
            nn.init.zeros_(self.head.weight)
        self.start_as_identity()

    def forward(self, iq: Tensor, *, targets: Tensor | None = None, snr: Tensor | None = None) -> SignalOutput:
        """Score the classes.

        Args:
            iq: complex [B, frame].
            snr: [B], SNR of each frame in dB, for models with condition="snr".
            targets: [B] classes, or [B, symbols].

        Raises:
            InputError: for frames of another length or type, or an SNR that is missing or not asked for.
        """
        config = self.config
        if iq.ndim != 2 or iq.shape[1] != config.frame or iq.shape[0] == 0:
            raise InputError(f"iq has shape {tuple(iq.shape)}, expected [batch, {config.frame}]")
        if iq.dtype not in COMPLEX_DTYPES:
            raise InputError(f"iq has dtype {iq.dtype}, expected complex64 or complex128")
        check_snr(snr, config.condition, iq.shape[0])
        if config.normalises:
            # Not by |iq|, which has no slope at 0.
            power = torch.view_as_real(iq.resolve_conj()).square().sum(-1).mean(-1, keepdim=True)
            iq = iq / power.clamp(min=torch.finfo(power.dtype).tiny).sqrt()
        seen, features = self._received(iq)
        x = self.stem(seen.unflatten(-1, (-1, config.samples_per_position)))
        if self.stem_snr is not None and snr is not None:
            x = self.stem_snr(x, snr)
        x = self.dropout(x)
        x, aux = self.through_blocks(x)
        if self.complex_valued:
            x = magnitude(x, 1e-6) if config.reads_magnitudes else to_pairs(x)
        if not config.symbols:
            x = x.mean(1)
        if self.joint is not None and features is not None:
            x = self.joint(x, features)
        if self.head_snr is not None and snr is not None:
            x = self.head_snr(x, snr)
        logits = self.head(x)
        if config.symbols:
            logits = logits.reshape(x.shape[0], config.symbols, config.n_classes)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(widened(logits).flatten(0, -2), targets.flatten())
        return SignalOutput(logits, loss, aux, None if config.symbols else x)

    def _received(self, iq: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the blocks see of frames, and their features: without weights, hence without gradients."""
        config = self.config
        if not config.is_received and config.feature_kinds == "none":
            return iq, None
        with torch.no_grad(), torch.autocast(iq.device.type, enabled=False):
            # Many small transforms, which the processor makes wherever the weights are.
            found = receive(iq.cpu(), config.known_rate)
            features = None
            if config.feature_kinds != "none":
                features = features_of(found, config.feature_kinds).to(iq.device)
            # A complex stream turns with the frame, a real one is spared it.
            seen = found.upright(keep_phase=self.complex_valued).to(iq.device) if config.is_received else iq
        return seen, features

    def cost(self, length: int) -> Cost:
        """Return parameters and forward FLOPs for one frame of `length` positions."""
        rows = length if self.config.symbols else 1
        shape = (self.head.weight.shape[1], self.head.weight.shape[0])
        head = Cost(sum(p.numel() for p in self.head.parameters()), linear_flops(rows, shape))
        told = sum((m.cost() for m in (self.stem_snr, self.head_snr) if m is not None), Cost())
        joint = Cost() if self.joint is None else self.joint.cost()
        return self.stem.cost(length) + self.blocks_cost(length) + joint + head + told


def predict(model: nn.Module, iq: Tensor, snr: Tensor | None = None) -> Tensor:
    """Return logits of frames [n, length], on the CPU; `snr` [n] in dB for a model that is told it.

    Raises:
        InputError: when there are none, or as the model does.
    """
    if not len(iq):
        raise InputError(f"iq has shape {tuple(iq.shape)}: there is no frame to answer for")
    device = next(model.parameters()).device
    # Written into one tensor: small results kept among the large ones of each pass would fragment the heap, which
    # then grows with every pass, to gigabytes.
    found: Tensor | None = None
    for start in range(0, len(iq), _ROWS):
        rows = slice(start, start + _ROWS)
        logits = model(iq[rows].to(device), snr=None if snr is None else snr[rows].to(device)).logits
        if found is None:
            found = torch.empty(len(iq), *logits.shape[1:])
        found[start : start + len(logits)] = logits
    assert found is not None
    return found
