"""The interface of `nn.MultiheadAttention` over any mixer."""

from blockyard.multihead.attention import MultiheadAttention

__all__ = ["MultiheadAttention"]
