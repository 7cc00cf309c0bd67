"""Experiments: compositions of the library, run from a checkout."""
