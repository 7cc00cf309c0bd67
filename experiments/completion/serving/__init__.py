"""The language server: model and engines joined while somebody types."""
