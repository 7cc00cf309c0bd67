"""Shared linen modules; activation functions are arguments."""
