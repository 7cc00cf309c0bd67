"""Bad settings of `experiments/locoprop/configs/autoencoder.py`.

A row: variant, settings by dotted key, the one that the message must name, what
it must say of it. A flag: what a command line has, key, value, what is said.
"""

from __future__ import annotations

NAN, INFINITY = float("nan"), float("inf")
_NOTEBOOK = {"schedule": "notebook"}
_ADAM, _LOCOPROP = "optimizers.adam", "optimizers.locoprop_m"

ROWS = [
  ("tiny", {"data.name": "mnits"}, "data.name", "did you mean 'mnist'"),
  ("tiny", {"data.num_train": 0}, "data.num_train", "1 or more"),
  ("tiny", {"data.num_test": -5}, "data.num_test", "1 or more"),
  ("tiny", {"data.size": 0}, "data.size", "1 or more"),
  ("digits", {"data.size": 3}, "data.size", "a divisor of 8"),
  ("digits", {"data.num_train": 1500}, "data.num_train", "at most 1442"),
  ("tiny", {"data.data_dir": "absent/data"}, "data.data_dir", "there is none"),
  ("mnist", {"data.name": "mnist"}, "data.name", "scripts.prepare_data"),
  ("tiny", {"model.hidden": (64, 0)}, "model.hidden", "each 1 or more"),
  ("tiny", {"model.hidden": ("64",)}, "model.hidden", "integers"),
  ("tiny", {"model.code_size": -3}, "model.code_size", "1 or more"),
  ("tiny", {"model.activation": "tan"}, "model.activation", "mean 'tanh'"),
  ("tiny", {"batch_size": 0}, "batch_size", "1 or more"),
  ("tiny", {"batch_size": 201}, "batch_size", "at most 200"),
  ("tiny", {"batch_size": 2.5}, "batch_size", "an integer"),
  ("tiny", {"num_epochs": 0}, "num_epochs", "1 or more"),
  ("tiny", {"num_evals": 0}, "num_evals", "1 or more"),
  ("tiny", {"schedule": "cosine"}, "schedule", "'linear', 'notebook'"),
  ("tiny", {"warmup": 1.5}, "warmup", "in [0.0, 1.0]"),
  ("tiny", {**_NOTEBOOK, "schedule_epochs": 5}, "schedule_epochs", "above 5"),
  ("tiny", {**_NOTEBOOK, "num_epochs": 100}, "num_epochs", "at most 99"),
  ("tiny", _NOTEBOOK | {"equal_seconds": True}, "equal_seconds", "False with"),
  (
    "tiny",
    {f"{_ADAM}.learning_rate": NAN},
    f"{_ADAM}.learning_rate",
    "above 0",
  ),
  ("tiny", {f"{_ADAM}.b2": 2.0}, f"{_ADAM}.b2", "in [0.0, 1.0]"),
  ("tiny", {f"{_ADAM}.kind": "adamm"}, f"{_ADAM}.kind", "mean 'adam'"),
  ("tiny", {f"{_ADAM}.beta": 0.9}, "setting of optimizers.adam", "'b1', 'b2'"),
  (
    "tiny",
    {f"{_LOCOPROP}.num_local_iters": 0},
    f"{_LOCOPROP}.num_local_iters",
    "1 or more",
  ),
  (
    "tiny",
    {f"{_LOCOPROP}.inner_options.decay": NAN},
    f"{_LOCOPROP}.inner_options.decay",
    "in [0.0, 1.0]",
  ),
  ("tiny", {"optimizers.soap.learning_rate": "fast"}, "soap", "above 0"),
  ("tiny", {"optimizers.kfac.damping": -0.1}, "kfac.damping", "above 0"),
  ("tiny", {"rate_factor": 0.0}, "rate_factor", "above 0"),
  ("tiny", {"rate_factors": (1.0, NAN)}, "rate_factors", "above 0"),
  ("tiny", {"axis": "hours"}, "axis", "'epochs', 'seconds'"),
  ("tiny", {"method": "adan"}, "method", "mean 'adam'"),
  ("tiny", {"methods": ("sgd", "adan")}, "methods", "mean 'adam'"),
  ("tiny", {"methods": ("sgd", "sgd")}, "methods", "all differ"),
  ("tiny", {"reference": "kfac"}, "reference", "'locoprop_m'"),
  ("tiny", {"seed": -1}, "seed", "in [0, 4294967295]"),
  ("tiny", {"seeds": ()}, "seeds", "1 or more"),
  ("tiny", {"seeds": (0, 0.5)}, "seeds", "an integer"),
  ("tiny", {"seeds": (1, 1)}, "seeds", "all differ"),
  ("tiny", {"save_every": -1}, "save_every", "0 or more"),
  ("tiny", {"keep": 0}, "keep", "1 or more"),
  ("tiny", {"mesh.data": 0}, "mesh.data", "1 or more, or -1"),
  ("tiny", {"mesh.model": -1}, "mesh.model", "where mesh.data is -1"),
  ("tiny", {"mesh.data": 3}, "batch_size", "multiple of mesh.data"),
  ("tiny", {"rules": (("(", ("model",)),)}, "rules", "no regex"),
  ("tiny", {"rules": (("kernel$", ("rows",)),)}, "rules", "'model'"),
  ("tiny", {"profile.start": -1}, "profile.start", "0 or more"),
  ("tiny", {"check.topology": "v5x:4x4"}, "topology", "'v5e'"),
  ("tiny", {"check.hbm_bytes": -1}, "check.hbm_bytes", "0 or more"),
  ("tiny", {"check.num_slices": -1}, "check.num_slices", "0 or more"),
  ("tiny", {"check.max_operations": -1.0}, "check.max_operations", "0 or more"),
  ("paper", {"needs_data": False}, "needs_data", "True"),
]
FLAGS = [
  (["--config.batch_size=0"], "batch_size", "0", "1 or more"),
  (["--config.model.hidden=(16, 0)"], "model.hidden", "(16, 0)", "1 or more"),
  (["--config.batch_size=many"], "batch_size", "many", ""),
  (["--config.batch_sise=20"], "batch_sise", "", "batch_size"),
  (
    ["--config.optimizers.adam.learning_rate=nan"],
    "optimizers.adam.learning_rate",
    "nan",
    "above 0",
  ),
]
# What a sweep over all keys may set: key -> why.
LEGAL: dict[str, str] = {}
