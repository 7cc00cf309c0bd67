"""Runs any experiment; knows no model and no method."""
