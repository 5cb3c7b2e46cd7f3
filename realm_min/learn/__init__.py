"""What each kind of training does in one step, and the optimizer."""
