"""Training: the trainer, one step of it, its hooks, checkpoints, optimizers."""
