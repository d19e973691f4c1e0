"""Training: state, step, strategies over devices, checkpoints and the loop that joins them."""
