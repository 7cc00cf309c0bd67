"""Training with noisy labels: CIW, CICW and CICW-Mixup and their baselines."""
