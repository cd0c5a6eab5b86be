"""Models built from blocks: embed, blocks by layer pattern, norm, head."""
