"""A training run: its fields, data, steps, state and checkpoints."""
