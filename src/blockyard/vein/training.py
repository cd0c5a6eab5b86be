"""Training models that hold veins: schedules of threshold, rank and freezing, learning rates, metrics per block.

Defaults are the vein-flow document's: tau 0.25, 0.18, 0.10 over the thirds of training, veins at learning rate 1e-4
beside 5e-4, veins frozen for the first five epochs. Schedules of the rank are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.roles import roles
from blockyard.protocol.ffn import FFN
from blockyard.vein.block import VFTBlock
from blockyard.vein.ffn import VFTFeedForward
from blockyard.vein.projector import VeinProjector

# The document's, and as there thresholds of the relative error.
TAUS = (0.25, 0.18, 0.10)
T = TypeVar("T")


def vein_blocks(model: nn.Module) -> dict[str, VFTBlock]:
    """Return every vein block of a model by its name; InputError when there is none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, VFTBlock)}
    if not found:
        raise InputError(f"{type(model).__name__} holds no VFTBlock; build it from tva+vft layers")
    return found


def value_at(progress: float, values: Sequence[T]) -> T:
    """Return the value after a share of training: each holds for an equal part of it.

    Args:
        progress: 0 at the start, 1 at the end.
        values: in order.
    """
    if not 0.0 <= progress <= 1.0:
        raise InputError(f"progress={progress} should be between 0 and 1")
    return values[min(int(progress * len(values)), len(values) - 1)]


def tau_at(progress: float, taus: Sequence[float] = TAUS) -> float:
    """Return the threshold after a share of training; a smaller one corrects more tokens. See `value_at`."""
    return value_at(progress, taus)


def set_tau(model: nn.Module, tau: float) -> None:
    """Set the threshold of every vein block."""
    for block in vein_blocks(model).values():
        block.normals.set_tau(tau)


def calibrate_tau(model: nn.Module, inputs: Any, fraction: float = 0.1) -> dict[str, float]:
    """Set every block's threshold, on its own input, so that a fraction of tokens is corrected.

    Args:
        model: the model, called as `model(inputs)`.
        inputs: a batch.
        fraction: share of tokens to correct.
    """
    taus: dict[str, float] = {}

    def hook(name: str) -> Any:
        def before(block: VFTBlock, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            masks = {key: keywords.get(key) for key in ("attn_mask", "padding_mask")}
            taus[name] = block.calibrate_tau(arguments[0], fraction, **masks)

        return before

    _run_with_hooks(model, inputs, hook, before=True)
    return taus


def freeze_veins(model: nn.Module, frozen: bool = True) -> None:
    """Stop or resume training the projectors of a model.

    Raises: InputError when it holds none.
    """
    veins = [module for module in model.modules() if isinstance(module, VeinProjector)]
    if not veins:
        raise InputError(f"{type(model).__name__} holds no VeinProjector, so there is nothing to freeze")
    for vein in veins:
        vein.requires_grad_(not frozen)


def ffn_veins(model: nn.Module) -> dict[str, VeinProjector]:
    """Return the veins of a model's FFNs (and of its errors) by name: of vft FFNs, and of mixtures that share one.

    Raises: InputError when it holds none.
    """
    owners = {name: m for name, m in model.named_modules() if isinstance(m, FFN)}
    found = {f"{name}.vein".lstrip("."): getattr(m, "vein", None) for name, m in owners.items()}
    veins = {name: vein for name, vein in found.items() if isinstance(vein, VeinProjector)}
    if not veins:
        raise InputError(f"{type(model).__name__} holds no vein FFN (vft), so there is no rank to set")
    return veins


def use_rank(model: nn.Module, rank: int | None) -> None:
    """Let every FFN's vein use its first `rank` directions only; None = all of them.

    The model then computes what one of that FFN rank with the same parameters computes (its hidden width stays). The
    heads of the attention keep theirs: its scale, rotary speeds and cache belong to their width.

    Raises: InputError when a vein has fewer directions.
    """
    _check_ranks(model, () if rank is None else (rank,))
    for vein in ffn_veins(model).values():
        vein.use_rank(rank)


def _check_ranks(model: nn.Module, ranks: Sequence[int]) -> None:
    for name, vein in ffn_veins(model).items():
        for rank in ranks:
            if not 1 <= rank <= vein.rank:
                raise InputError(f"rank {rank} should be at least 1 and at most {vein.rank}, the rank of {name}")


def match_ranks(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the veins hold a rank in use where a saved state dict has one, so that it can be loaded."""
    for name, vein in ffn_veins(model).items():
        # The mask is a buffer: a state dict that holds one can only be loaded where there is one.
        vein.use_rank(vein.rank if f"{name}.active" in state else None)


@torch.no_grad()
def trim_veins(model: nn.Module) -> nn.Module:
    """Cut the FFNs' veins to the directions in use, for good: the same function with fewer parameters.

    Works in place, on vft FFNs. The state dict then fits a model built with that ffn_rank (and the r_hidden it had).

    Raises: InputError when there is nothing to cut, or a mixture of experts shares the vein.
    """
    chosen = {name: vein for name, vein in ffn_veins(model).items() if vein.active is not None}
    if not chosen:
        raise InputError("every direction of every vein is in use; call use_rank first")
    for name in chosen:
        ffn = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(ffn, VFTFeedForward):
            raise InputError(f"{name} belongs to a mixture of experts, whose veins cannot be cut")
        ffn.trim()
    for block in model.modules():
        if isinstance(block, VFTBlock):
            # What the block says of itself when it is saved.
            block.saved_as[1] = block.rank
    return model


class VeinSchedule:
    """What changes over training: veins frozen at first, a threshold that falls, a rank in use.

    Args:
        model: what is trained.
        epochs: number of epochs (or any other unit of progress).
        taus: thresholds over training, the document's by default; None leaves them.
        frozen_epochs: epochs during which the projectors stay as they are.
        ranks: directions of the FFNs' veins in use over training, growing or shrinking; None = all.

    Each value holds for an equal part of training. Call `start_epoch(n)` with n = 0 … epochs − 1, or, finer, `at`.

    Raises: InputError when there is nothing in the model that a schedule could change, or a rank is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: int,
        *,
        taus: Sequence[float] | None = TAUS,
        frozen_epochs: int = 5,
        ranks: Sequence[int] | None = None,
    ) -> None:
        if epochs < 1 or frozen_epochs < 0:
            raise InputError(f"epochs={epochs} should be at least 1 and frozen_epochs={frozen_epochs} at least 0")
        self.model, self.epochs, self.frozen_epochs = model, epochs, frozen_epochs
        self.taus, self.ranks = taus, ranks
        if taus is not None:
            vein_blocks(model)
        if ranks is not None:
            _check_ranks(model, ranks)
            # Now, so that masks are there before an optimizer or a compiled graph is made of the model.
            use_rank(model, ranks[0])
        self._now: dict[str, float] = {}

    def start_epoch(self, epoch: int) -> None:
        freeze_veins(self.model, epoch < self.frozen_epochs)
        self.at(min(1.0, epoch / self.epochs))

    def at(self, progress: float) -> dict[str, float]:
        """Set threshold and rank for a share of training, 0 … 1; returns what is scheduled: tau, rank."""
        now: dict[str, float] = {}
        if self.taus is not None:
            now["tau"] = value_at(progress, self.taus)
        if self.ranks is not None:
            now["rank"] = value_at(progress, self.ranks)
        # Setting writes to every block: only where a value changes.
        if now != self._now:
            if "tau" in now:
                set_tau(self.model, now["tau"])
            if "rank" in now:
                use_rank(self.model, int(now["rank"]))
            self._now = now
        return now


def param_groups(
    model: nn.Module, lr: float = 5e-4, vein_lr: float = 1e-4, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Return groups for a torch optimizer: veins learn slower; gains, biases and embeddings are not decayed.

    Args:
        model: what is trained.
        lr: learning rate of everything but the veins.
        vein_lr: learning rate of the veins.
        weight_decay: decay of matrices.
    """
    parameters = dict(model.named_parameters())
    buckets: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, role in roles(model).items():
        vein, decayed = role.group == "vein", role.kind in ("matrix", "head")
        buckets.setdefault((vein, decayed), []).append(parameters[name])
    return [
        {
            "name": f"{'vein' if vein else 'main'}{'' if decayed else ' undecayed'}",
            "params": chosen,
            "lr": vein_lr if vein else lr,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (vein, decayed), chosen in buckets.items()
    ]


def vein_metrics(model: nn.Module, inputs: Any) -> dict[str, dict[str, Any]]:
    """Return metrics of every vein block on its own input, from one forward pass without gradients.

    Args:
        model: the model, called as `model(inputs)`.
        inputs: a batch.
    """
    found: dict[str, dict[str, Any]] = {}

    def hook(name: str) -> Any:
        def after(block: VFTBlock, arguments: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
            aux = output[1] or {}
            found[name] = aux.get("stats", aux)

        return after

    chosen = vein_blocks(model)
    before = {name: block.metrics for name, block in chosen.items()}
    try:
        for block in chosen.values():
            # Asked of the forward pass, so that each block is measured on the input that it gets there.
            block.metrics = True
        _run_with_hooks(model, inputs, hook, before=False)
    finally:
        for name, block in chosen.items():
            block.metrics = before[name]
    return found


def log_vein_metrics(model: nn.Module, x: Any) -> dict[str, dict[str, Any]]:
    """Print every block's mean error and share over tau; returns all metrics.

    Each block is measured on its own input. (The document's version feeds the same x to all of them.)
    """
    found = vein_metrics(model, x)
    for name, metrics in found.items():
        share = float(metrics["eps_frac_over_tau"])
        print(f"{name or 'block'}: eps_mean={float(metrics['eps_mean']):.4f} over tau={share:.2%}")
    return found


def _run_with_hooks(model: nn.Module, inputs: Any, hook: Any, *, before: bool) -> None:
    handles = [
        block.register_forward_pre_hook(hook(name), with_kwargs=True)
        if before
        else block.register_forward_hook(hook(name))
        for name, block in vein_blocks(model).items()
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
