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
        self._seen = [(tensor, _version(tensor)) for tensor in tensors]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        if len(tensors) != len(self._seen):
            return False
        return all(t is seen and _version(t) == version for t, (seen, version) in zip(tensors, self._seen))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
