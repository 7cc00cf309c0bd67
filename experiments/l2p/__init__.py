"""LIMoE: contrastive training of one tower with experts, and its baselines."""
