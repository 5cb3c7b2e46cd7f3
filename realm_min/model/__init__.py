"""The five models in torch, with their gradients: the fast twin of `textbook.py`, in the same names and order."""
