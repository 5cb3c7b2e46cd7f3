"""Embedder, encoder and reader in torch, with their gradients: the fast twin of `textbook.py`, in its names."""
