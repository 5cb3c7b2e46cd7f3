"""transformers' surface: the five models as classes around the functions of `model/`, with folders and checks."""
