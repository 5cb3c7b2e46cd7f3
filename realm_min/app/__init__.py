"""The commands of `realm-min`, and the default model that they use."""
