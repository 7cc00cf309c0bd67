"""Examples up to the NumPy batch: sources and the pipeline."""
