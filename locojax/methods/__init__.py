"""The methods, one folder each; every folder is usable alone."""
