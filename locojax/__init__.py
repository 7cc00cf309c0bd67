"""locojax: ten deep-learning systems as small, composable JAX libraries."""

__version__ = "0.1.0"
