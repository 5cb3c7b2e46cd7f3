"""Several processes, and the devices that they use."""
