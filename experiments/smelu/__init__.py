"""SmeLU: smooth activations and reproducibility."""
