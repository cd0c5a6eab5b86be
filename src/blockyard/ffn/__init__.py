"""FFNs: modules that act on every position by itself, behind one protocol (`blockyard.ffn.base`)."""
