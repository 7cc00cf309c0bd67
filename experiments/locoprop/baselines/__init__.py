"""Second-order baselines: Shampoo, SOAP and K-FAC.

`optax` has none of the three, and the packages that have do not run on current
jax. `shampoo` and `soap` are optax transformations; `kfac` is one that needs
the factors of its layers, which `kfac.make_step` brings.
"""
