"""REALM (Guu et al. 2020) from scratch."""
