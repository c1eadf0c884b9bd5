"""Run a training: fields, data, steps, state and checkpoints."""
