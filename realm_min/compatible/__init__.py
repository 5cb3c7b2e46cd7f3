"""Names that programs written for transformers and torch use around a model, beside REALM itself."""
