"""What makes a training run of steps: settings, the loop with its checkpoints, a fresh index, where weights begin."""
