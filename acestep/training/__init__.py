"""Training: objective, data order, optimizers, the one loop, checkpoints, validation and run folders."""
