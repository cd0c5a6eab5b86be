"""What blocks want once per optimizer step, under transformers' Trainer: a router that is balanced by its bias.

The loop of `blockyard train` does the same by itself (`after_step`, docs/architecture.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from blockyard.errors import require

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    TrainerCallback = require("transformers", extra="hf").TrainerCallback


class StepHooks(TrainerCallback):
    """Tells blocks what they reported, summed over the passes of a step: `Trainer(…, callbacks=[StepHooks(model)])`.

    Without it a mixture with balance=bias trains with the bias that it began with.

    Args:
        model: a model of the family, before anything is wrapped around it.
    """

    def __init__(self, model: Any) -> None:
        lm = model.model
        # A layer hands on what it is told to whom it concerns.
        self._listeners = {
            f"layers.{number}": layer for number, layer in enumerate(lm.layers) if hasattr(layer, "after_step")
        }
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._handle = lm.register_forward_hook(self._gather)

    def _gather(self, module: Any, given: Any, output: Any) -> None:
        if not module.training or output.aux is None:
            return
        for layer, stats in output.aux.get("stats", {}).items():
            sums = self._sums.setdefault(layer, {})
            for name, value in stats.items():
                # Counts add up over passes; single numbers (a share, a maximum) would not.
                if isinstance(value, Tensor) and value.ndim:
                    found = value.detach()
                    sums[name] = sums[name] + found if name in sums else found

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand over what was gathered."""
        for layer, stats in self._sums.items():
            if layer in self._listeners:
                self._listeners[layer].after_step(stats)
        self._sums = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen no longer."""
        self._handle.remove()
