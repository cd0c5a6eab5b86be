"""Whether tensors are still what they were when something was made of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Stamp:
    """Tensors, and how often each has been changed in place so far.

    Looking costs a microsecond. What is changed behind autograd's back, through `.data`, goes unnoticed, and so do
    changes of inference tensors: what carries a stamp should be short-lived.

    Args:
        tensors: what something was made of.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        # Inference tensors do not count their changes.
        self._versions = tuple(None if tensor.is_inference() else tensor._version for tensor in tensors)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        if len(tensors) != len(self._tensors):
            return False
        for tensor, seen, version in zip(tensors, self._tensors, self._versions):
            if tensor is not seen or (version is not None and tensor._version != version):
                return False
        return True
