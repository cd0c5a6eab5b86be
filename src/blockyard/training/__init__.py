"""Training: one loop on plain PyTorch, exact across interruptions, the same on one process or many."""
