"""Code completion: a model and semantic engines together."""
