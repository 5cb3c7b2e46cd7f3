"""Exact maximum inner product search, on one machine or on the slices of several ranks."""
