"""Compositions that two or more experiments share."""
