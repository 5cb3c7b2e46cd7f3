"""Triton kernels for the two hot spots of REALM, installed as `realm_min.kernels`."""
