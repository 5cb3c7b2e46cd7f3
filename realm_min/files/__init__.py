"""What is on disk: checkpoints, packed models, hub names, Google's TensorFlow files, and writing without half-files."""
