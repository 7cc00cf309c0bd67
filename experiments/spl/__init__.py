"""Sub-pseudo labels on weakly labelled clips and images."""
