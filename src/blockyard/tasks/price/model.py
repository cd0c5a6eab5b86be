"""The price forecaster: windows of features -> tokens -> blocks -> a distribution of the return at each horizon."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.config import BlocksConfig
from blockyard.models.trunk import Trunk
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear
from blockyard.nn.roles import Role
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.tasks.price.embedding import GroupedEmbedding, PatchEmbedding, grouping, patches_in
from blockyard.tasks.price.heads import (
    HeadKind,
    PointHead,
    QuantileHead,
    StudentHead,
    check_levels,
    direction_loss,
    smoothness_loss,
)

HORIZONS = (1, 2, 3, 4, 5, 10, 15, 20, 25, 30)
LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
# Groups of the usual features, each with a projection of its own in the layout `day`.
GROUPS: dict[str, tuple[str, ...]] = {
    "returns": ("return_1", "return_5", "return_10", "return_20", "return_60"),
    "volatility": ("volatility_5", "volatility_20", "volatility_60", "parkinson"),
    "bar": ("gap", "body", "range", "close_location"),
    "trend": ("rsi", "macd", "drawdown"),
    "volume": ("volume_z", "volume_change"),
    "calendar": ("weekday", "month"),
}
# Features from which the layout `return` of instance normalisation reads the window's volatility.
RETURN, LONG_SIGMA, SIGMA = "return_1", "volatility_60", "volatility_20"
# Scaled features beyond this many standard deviations of training are cut: a net extrapolates them badly.
CLIP = 8.0


@dataclass(frozen=True, kw_only=True)
class PriceConfig(BlocksConfig):
    """The architecture of a price forecaster.

    Args:
        features: names of the input's features; they follow from the data.
        known: those among them that are known in advance or say what the asset is; they follow from the data, too, and
            no normalisation of a window's own takes away what they say.
        context: steps of a window.
        horizons: steps ahead that are forecast, rising.
        layout: `day` makes a token of every step, by groups of features (the document's); `patch` one of every patch.
        patch: steps of a patch.
        stride: steps from one patch to the next.
        groups: groups of features in layout `day`: auto, one, or `name=feature,feature;name=…`.
        group_norm: `batch` normalises each group over batch and time, with running statistics; or none.
        instance: normalise each window by itself and undo it in the forecast (RevIN): `return` scales the forecast by
            the window's volatility, `level` also shifts it by the window's mean (for series that are no prices).
        pool: what of the last layer the head reads: the last token, the mean, or all tokens (flatten).
        shortcut: a linear path beside the blocks, from the `last` step's features or the whole `window`, or none.
        shortcut_ridge: start the linear path as a ridge regression on training windows, with a penalty of this share of
            their mean power; none starts it at zero. Only with head=point.
        head: `quantile`, `student_t` or `point`.
        quantiles: levels of the forecast quantiles, rising.
        direction_weight: weight of the direction loss beside the squared error (head `point`).
        smoothness_weight: weight of the smoothness loss beside it.
        causal: hide later steps of the window from earlier ones (the forecast is made at its end either way).

    Raises:
        InputError: when a value is out of range or does not fit another.
    """

    features: tuple[str, ...]
    known: tuple[str, ...] = ()
    d_model: int = 32
    n_layers: int = 2
    dropout: float = 0.1
    context: int = 64
    horizons: tuple[int, ...] = HORIZONS
    layout: Literal["day", "patch"] = "patch"
    patch: int = 8
    stride: int = 8
    groups: str = "auto"
    group_norm: Literal["batch", "none"] = "batch"
    instance: Literal["none", "return", "level"] = "return"
    pool: Literal["last", "mean", "flatten"] = "last"
    shortcut: Literal["none", "last", "window"] = "last"
    shortcut_ridge: float | None = None
    head: HeadKind = "student_t"
    quantiles: tuple[float, ...] = LEVELS
    direction_weight: float = 0.0
    smoothness_weight: float = 0.0
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("context", "patch", "stride")
        if not self.features:
            raise InputError("features is empty; name at least one")
        if unknown := [name for name in self.known if name not in self.features]:
            raise InputError(f"known names {unknown[0]!r}, which is no feature")
        rising = all(a < b for a, b in pairwise(self.horizons))
        if not self.horizons or self.horizons[0] < 1 or not rising:
            raise InputError(f"horizons={list(self.horizons)} must be rising numbers of steps from 1 on")
        check_levels(self.quantiles)
        if self.layout == "patch" and self.groups != "auto":
            raise InputError(f"groups={self.groups!r} belongs to layout=day; with layout=patch features have no groups")
        if self.layout == "patch" and self.patch > self.context:
            raise InputError(f"patch={self.patch} is longer than context={self.context}")
        for name in ("direction_weight", "smoothness_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}={getattr(self, name)} should be a number of at least 0")
            if getattr(self, name) and self.head != "point":
                raise InputError(f"{name}={getattr(self, name)} needs head=point; head={self.head} has its own loss")
        if self.shortcut_ridge is not None:
            if not 0 < self.shortcut_ridge < float("inf"):
                raise InputError(f"shortcut_ridge={self.shortcut_ridge} should be a number above 0")
            if self.head != "point" or self.shortcut == "none":
                raise InputError(
                    f"shortcut_ridge needs head=point and a linear path; head={self.head}, shortcut={self.shortcut}"
                )
        if self.instance == "level" and self.head == "student_t":
            raise InputError("instance=level goes with head=quantile or head=point")

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.context if self.layout == "day" else patches_in(self.context, self.patch, self.stride)

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only those before them."""
        return self.causal


@dataclass
class PriceOutput:
    """What the model returns; targets are cumulative log returns ÷ (σ20 √h).

    Args:
        point: [B, H].
        quantiles: [B, H, levels]; None with head=point.
        state: what the head read of the last layer, normalised: the document's strategy features, [B, d_model]
            ([B, tokens · d_model] with pool=flatten).
        loss: mean over the batch, when targets were given.
        aux: as in `LMOutput`.
    """

    point: Tensor
    quantiles: Tensor | None
    state: Tensor
    loss: Tensor | None = None
    aux: dict[str, Any] | None = None


class Readout(Linear):
    """The matrix before the head, zero at the start."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("head")}


def ridge(x: Tensor, y: Tensor, weight: Tensor, penalty: float) -> Tensor:
    """Return the matrix W [H, F] that minimises Σ weight² |y − W x|² + penalty · power · |W|², in double precision.

    Args:
        x: [N, F].
        y: [N, H].
        weight: of every row, [N, 1].
        penalty: as a share of the mean power, Σ weight² |x|² / F.
    """
    x, y = (x * weight).double(), (y * weight).double()
    gram = x.mT @ x
    power = gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.linalg.solve(gram + penalty * power * torch.eye(len(gram), dtype=gram.dtype), x.mT @ y).mT


class PriceForecaster(Trunk):
    """A forecaster over any registered blocks.

    `PriceForecaster(PriceConfig(features=data.features, blocks="mla"))(x)`

    The scaling of features and the head's starting distribution come from training data (`start_at`) and are kept with
    the weights, so that a trained model takes unscaled features.

    Args:
        config: the architecture.

    Raises: InputError for a mixer or options that do not fit.
    """

    config: PriceConfig

    def __init__(self, config: PriceConfig) -> None:
        super().__init__(config)
        count = len(config.features)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.embedding: nn.Module
        if config.layout == "day":
            groups = grouping(config.groups, config.features, GROUPS)
            self.embedding = GroupedEmbedding(groups, config.d_model, norm=config.group_norm)
        else:
            self.embedding = PatchEmbedding(count, config.d_model, patch=config.patch, stride=config.stride)
        self.dropout = Dropout(config.dropout)
        self.build_blocks()
        self.head: Any
        if config.head == "point":
            self.head = PointHead(len(config.horizons))
        else:
            kinds = {"quantile": QuantileHead, "student_t": StudentHead}
            self.head = kinds[config.head](len(config.horizons), config.quantiles)
        outputs = len(config.horizons) * self.head.width
        read = config.d_model * (config.length if config.pool == "flatten" else 1)
        self.readout = Readout(read, outputs, bias=True)
        seen = count * {"none": 0, "last": 1, "window": config.context}[config.shortcut]
        self.shortcut = Readout(seen, outputs) if seen else None
        self.start_as_identity()
        self._places = [config.features.index(n) for n in self._needed()]
        is_known = torch.tensor([name in config.known for name in config.features])
        self.is_known: Tensor
        self.register_buffer("is_known", is_known, persistent=False)

    def _needed(self) -> tuple[str, ...]:
        """Return features that instance normalisation reads."""
        needed = (RETURN, LONG_SIGMA, SIGMA) if self.config.instance == "return" else ()
        for name in needed:
            if name not in self.config.features:
                raise InputError(f"instance=return needs feature {name!r}; features: {', '.join(self.config.features)}")
        return needed

    def start_at(self, mean: Tensor, std: Tensor, x: Tensor, y: Tensor) -> None:
        """Take over the scaling of features and the distribution of targets, both of training data.

        Args:
            mean: of every feature, [F].
            std: likewise.
            x: windows of training, [N, context, F].
            y: their targets, [N, H].
        """
        with torch.no_grad():
            self.mean.copy_(mean)
            self.std.copy_(std)
            seen, shift, scale = self._normalise(x)
            target = (y - shift) / scale
            self.head.start_at(target)
            if self.config.shortcut_ridge is not None:
                assert self.shortcut is not None
                left = target - self.head.base
                self.shortcut.weight.copy_(ridge(self._short(seen), left, scale, self.config.shortcut_ridge))

    def _short(self, seen: Tensor) -> Tensor:
        """Return what the linear path reads of scaled features."""
        return seen[:, -1] if self.config.shortcut == "last" else seen.flatten(1)

    def forward(self, x: Tensor, *, targets: Tensor | None = None) -> PriceOutput:
        """Forecast from windows.

        Args:
            x: unscaled features, [B, context, F].
            targets: [B, H].

        Raises:
            InputError: for a window of another shape or type.
        """
        self._check(x, targets)
        seen, shift, scale = self._normalise(x)
        h, aux = self.through_blocks(self.dropout(self.embedding(seen)))
        state = self._pool(h)
        raw = self.readout(state)
        if self.shortcut is not None:
            raw = raw + self.shortcut(self._short(seen))
        raw = raw.unflatten(-1, (len(self.config.horizons), self.head.width))
        return self._output(raw, state, shift, scale, targets, aux)

    def _output(
        self, raw: Tensor, state: Tensor, shift: Tensor, scale: Tensor, targets: Tensor | None, aux: Any
    ) -> PriceOutput:
        point = self.head.point(raw) * scale + shift
        quantiles = None
        if self.config.head != "point":
            quantiles = self.head.quantiles(raw) * scale[..., None] + shift[..., None]
        loss = None if targets is None else self._loss(raw, point, quantiles, shift, scale, targets)
        return PriceOutput(point, quantiles, state, loss, aux)

    def _loss(
        self, raw: Tensor, point: Tensor, quantiles: Tensor | None, shift: Tensor, scale: Tensor, y: Tensor
    ) -> Tensor:
        config = self.config
        if config.head == "quantile":
            loss: Tensor = self.head.loss(quantiles, y)
            return loss
        if config.head == "student_t":
            # A density of y is one of y / scale ÷ scale.
            nll: Tensor = self.head.nll(raw, (y - shift) / scale) + scale.log().mean()
            return nll
        loss = (point - y).square().mean()
        if config.direction_weight:
            loss = loss + config.direction_weight * direction_loss(point, y)
        if config.smoothness_weight:
            loss = loss + config.smoothness_weight * smoothness_loss(point)
        return loss

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled features [B, T, F], and what the forecast is shifted by and multiplied with, [B, 1] each."""
        scaled = (x - self.mean) / self.std
        if self.config.instance != "level":
            # A level may be anywhere; it is taken out below.
            scaled = scaled.clamp(-CLIP, CLIP)
        nothing = torch.zeros_like(x[:, 0, :1])
        if self.config.instance == "none":
            return scaled, nothing, torch.ones_like(nothing)
        mean = scaled.mean(dim=1, keepdim=True)
        std = torch.sqrt(scaled.var(dim=1, keepdim=True, correction=0) + 1e-5)
        normal = (scaled - mean) / std
        if self.config.known:
            # What never changes in a window, or seldom, would be 0 or a spike.
            normal = torch.where(self.is_known, scaled, normal)
        if self.config.instance == "level":
            # The first feature is the series itself, in the units of its scaled values.
            return normal, mean[:, 0, :1], std[:, 0, :1]
        return normal, nothing, self._window_volatility(x)

    def _window_volatility(self, x: Tensor) -> Tensor:
        """Return the volatility over the window ÷ that over its last 20 steps, [B, 1]: returns come divided by σ60."""
        z, long_sigma, sigma = (x[..., place] for place in self._places)
        # Bounded in front of exponential and root, whose slopes are infinite at their ends: a window may stand still.
        r = z * torch.exp((long_sigma - sigma[:, -1:]).clamp(-20.0, 20.0))
        return r.square().mean(dim=1, keepdim=True).clamp(1e-4, 1e4).sqrt()

    def _pool(self, h: Tensor) -> Tensor:
        if self.config.pool == "flatten":
            return h.flatten(1)
        return h.mean(dim=1) if self.config.pool == "mean" else h[:, -1]

    def _check(self, x: Tensor, targets: Tensor | None) -> None:
        config = self.config
        expected = (config.context, len(config.features))
        if x.ndim != 3 or tuple(x.shape[1:]) != expected or not x.shape[0]:
            raise InputError(f"x has shape {tuple(x.shape)}, expected [batch, {expected[0]}, {expected[1]}]")
        if not x.is_floating_point():
            raise InputError(f"x has dtype {x.dtype}, expected a floating type")
        if targets is not None and targets.shape != (x.shape[0], len(config.horizons)):
            wanted = (x.shape[0], len(config.horizons))
            raise InputError(f"targets has shape {tuple(targets.shape)}, expected {wanted}")

    def cost(self, length: int) -> Cost:
        """Return parameters, and forward FLOPs of one window, whose tokens are `length` long.

        Raises:
            InputError: for another length than that of the configuration's windows.
        """
        config = self.config
        if length != config.length:
            raise InputError(f"length={length}: a forecaster takes windows of {config.length} tokens")
        maps = [m for m in self.embedding.modules() if isinstance(m, Linear)]
        heads = [m for m in (self.readout, self.shortcut) if m is not None]
        rest = sum(p.numel() for m in (self.embedding, *heads) for p in m.parameters())
        # Every map once per token, every head once per window.
        flops = sum(
            linear_flops(n, (m.weight.shape[1], m.weight.shape[0]))
            for n, ms in ((length, maps), (1, heads))
            for m in ms
        )
        return self.blocks_cost(length) + Cost(rest, flops)
