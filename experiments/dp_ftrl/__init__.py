"""Federated learning with user-level differential privacy: experiments."""
