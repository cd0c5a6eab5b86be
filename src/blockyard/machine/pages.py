"""Memory for large buffers that are read from end to end at every step: in huge pages, where the system has them.

With pages of 4 KiB a CPU spends much of a decoding step on looking addresses up: behind 8 × 8192 cached tokens a step
of multi-head attention takes 1.3 times as long as with pages of 2 MiB. Linux hands those out on request only
(transparent_hugepage = madvise) or whenever it likes (always); elsewhere, and for small buffers, nothing changes.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

HUGE_PAGE = 2 << 20
# Below this a buffer fits the CPU's own caches, and whole pages would be wasted on it.
FROM_BYTES = 2 * HUGE_PAGE


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor, as `torch.empty`."""
    size = math.prod(shape) * dtype.itemsize
    if device.type == "cpu" and size >= FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE") and not _traced():
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            # A kernel without huge pages, or a limit on mappings.
            return torch.empty(shape, dtype=dtype, device=device)
        # The tensor keeps the mapping alive.
        return torch.frombuffer(memory, dtype=dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _traced() -> bool:
    """Return whether tensors are not real ones (a compiler, or a mode that only looks at shapes)."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
