"""Losses and schemes for noisy labels that CIW is compared with.

`losses.make(name, **options)` gives a loss per example by its name. Baselines
with a memory over the data set (dynamic bootstrapping, dynamic mixup) are in
`dynamic.py`, which uses the mixture of `beta_mixture.py`.
"""
