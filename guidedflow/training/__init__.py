"""Training: state, step, sharding strategies, checkpoints and the training loop."""
