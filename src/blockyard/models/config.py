"""The part of a model's configuration that all models share: which blocks, how wide, how many, how normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import nn

from blockyard.errors import InputError, at_least
from blockyard.nn.rotary_scaling import scaling_of
from blockyard.protocol.block import build_block, check_parallel
from blockyard.protocol.mixer import NORM_EPS, make_norm_of
from blockyard.registry.pattern import LayerSpec, check_layer, format_choice, parse_choice, repeat_to_depth


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """The blocks of a model. A model's own configuration inherits from it and adds what goes in and what comes out.

    Args:
        blocks: the layers, as a choice (`"spectral*3/standard"`) or specifications; fewer than n_layers repeat.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: number of attention heads, dividing d_model.
        norm: rms or layer.
        norm_position: pre (norm before each sublayer, and a last one), post (after each addition) or branch (on what
            each sublayer adds, and a last one).
        norm_eps: added to the mean square or variance in the norms, those of queries and keys among them.
        parallel: let mixer and FFN of a block read the same input, rather than the FFN what the mixer has added to.
        dropout: probability of dropping, for the embedding and for every mixer and FFN that has dropout.
        rope_theta: base of the rotary wavelengths; larger for longer contexts.
        rope_scaling: of the rotary frequencies, for texts longer than those trained on: linear, dynamic, yarn, llama3
            or longrope with options, `llama3[factor=8,original=8192]`; none leaves them.
        zero_init_outputs: start every block as the identity and every output at 0.
    """

    # Options that run folders from before they existed do not name, with the values that their models have.
    older: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"norm_eps": NORM_EPS, "parallel": False, "rope_scaling": None}
    )
    # Whether the model can give positions to mixers that know none (`positions=learned`).
    can_learn_positions: ClassVar[bool] = False

    blocks: str | tuple[LayerSpec, ...] = "standard"
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["pre", "post", "branch"] = "pre"
    norm_eps: float = NORM_EPS
    parallel: bool = False
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    rope_scaling: str | None = None
    zero_init_outputs: bool = True

    def __post_init__(self) -> None:
        self.check_shape()

    def check_shape(self) -> None:
        """Refuse sizes and factors out of bounds. A subclass's own `__post_init__` calls this one's, then checks its
        own fields; options given by a user are checked here even if it forgets to."""
        self.check_at_least_one("d_model", "n_layers", "n_heads")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout={self.dropout} should be at least 0 and below 1")
        # Written so that NaN and infinity are refused, too.
        if not 0 < self.rope_theta < float("inf"):
            raise InputError(f"rope_theta={self.rope_theta} should be positive")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"norm_eps={self.norm_eps} should be above 0 and below 1")
        if self.rope_scaling is not None:
            scaling_of(self.rope_scaling)
        check_parallel(self.parallel, self.norm_position)

    def check_at_least_one(self, *names: str) -> None:
        """Refuse sizes below 1."""
        at_least(1, **{name: getattr(self, name) for name in names})

    @property
    def length(self) -> int:
        """Positions that the blocks see at once in training: what costs are counted and matched at."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many positions its blocks see")

    @property
    def is_causal(self) -> bool:
        """Whether every position is to see the past alone."""
        return True

    @property
    def is_complex(self) -> bool:
        """Whether the activations are complex numbers."""
        return False

    @classmethod
    def may_be_complex(cls) -> bool:
        """Return whether there are choices of blocks with which the activations are complex numbers."""
        return cls.is_complex is not BlocksConfig.is_complex

    @property
    def is_ordered(self) -> bool:
        """Whether it matters to the model in which order positions stand."""
        return True

    @property
    def learns_positions(self) -> bool:
        """Whether the model adds positions of its own to what it reads."""
        return False

    @property
    def decided(self) -> dict[str, Any]:
        """The options of `older` with what they come to, where they leave it to the blocks."""
        return {name: getattr(self, name) for name in self.older}

    @property
    def pattern(self) -> list[LayerSpec]:
        """The checked specifications that repeat over the depth: what is true of all layers is asked of these few."""
        specs: Sequence[LayerSpec] = parse_choice(self.blocks) if isinstance(self.blocks, str) else self.blocks
        if not specs:
            raise InputError("blocks is empty; name at least one layer")
        return [check_layer(spec) for spec in specs]

    @property
    def layers(self) -> list[LayerSpec]:
        """One checked specification per layer."""
        return repeat_to_depth(self.pattern, self.n_layers)

    @property
    def choice(self) -> str:
        """The layers as one line of text."""
        return self.blocks if isinstance(self.blocks, str) else format_choice(self.blocks)

    def build_block(self, spec: LayerSpec) -> Any:
        """Construct one layer as this model has it."""
        return build_block(
            spec,
            d_model=self.d_model,
            n_heads=self.n_heads,
            causal=self.is_causal,
            norm=self.norm,
            norm_position=self.norm_position,
            norm_eps=self.norm_eps,
            parallel=self.parallel,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            dropout=self.dropout,
            complex_valued=self.is_complex,
        )

    def build_final_norm(self, last: nn.Module) -> nn.Module:
        """Return the norm after the last block, as that block's mixer has it; post-norm blocks end in one of their
        own."""
        if self.norm_position == "post":
            return nn.Identity()
        return make_norm_of(getattr(last, "attn", last), self.norm, self.d_model, self.norm_eps)
