"""How the models learn."""
