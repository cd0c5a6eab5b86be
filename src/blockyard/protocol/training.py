"""What a system may ask of the training loop: options of its own in the group `train`, rates, and a say in every step.

The loop knows no system. A wing that wants something declares its options as a dataclass, named once in the register's
table; the loop asks that for rates and decays, and for a hook where the options concern the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError, at_least

if TYPE_CHECKING:
    from torch import Tensor, nn


# Methods that do nothing, not None to be asked for: the loop then has one path whether a system takes part or not.
class TrainingHook:
    """What a system does around every step of a run; this one does nothing."""

    def before_step(self, step: int, progress: float) -> dict[str, float]:
        """Act before update number `step`, counted from 0.

        Args:
            step: the update.
            progress: the share of the run that lies behind, 0 … 1; a run that a clock ends has its schedules end there.

        Returns: what is scheduled now, logged under these names.
        """
        return {}

    def after_step(self, step: int) -> bool:
        """Act after update number `step`; returns whether parameters were taken from the model."""
        return False

    # Guides and reconstructions are paid for by the run that wants them: a budget in FLOPs has to see them.
    def extra_flops(self, step: int, tokens: int) -> int:
        """Return FLOPs of a step of so many tokens beside those of the model's own formula."""
        return 0

    def check_ranks(self, count: int) -> None:
        """Refuse to train in so many processes.

        Raises:
            InputError: naming the option that cannot.
        """


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of the group `train` that a system adds; each is named `SYSTEM_…` and checked by `__post_init__`.

    `group` is the group that a module gives its parameters by their roles (see `blockyard.nn.roles`), such as `vein`.
    """

    def scale(self, group: str) -> float:
        """Return the factor on the peak learning rate of a group."""
        return 1.0

    def rate(self, group: str, step: int) -> float:
        """Return the factor on the scheduled learning rate of a group at update number `step`; 0 freezes it."""
        return 1.0

    def decay(self, group: str, usual: float) -> float:
        """Return the weight decay of a group, given the usual one."""
        return usual

    # A model whose ranks grew in training is resumed with other shapes than its options say.
    def match(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        """Give a model the parts that a saved state dict has, before that is loaded."""

    def hooks(self, model: nn.Module, steps: int) -> list[TrainingHook]:
        """Return what is to be done around the steps of a run of so many.

        Raises:
            InputError: for an option that would do nothing with this model.
        """
        return []


def check_least(options: Any, name: str, least: int) -> None:
    """Raise InputError unless the option is at least so large."""
    at_least(least, **{f"train.{name}": getattr(options, name)})


def check_weight(options: Any, name: str) -> None:
    """Raise InputError unless the option is none or a finite number of at least 0."""
    value = getattr(options, name)
    # Written so that NaN is refused, too: it is below nothing and above nothing.
    if value is not None and not 0 <= value < float("inf"):
        raise InputError(f"train.{name}={value} must be a number of at least 0")
