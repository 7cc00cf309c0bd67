"""Search spaces of the benchmark: equal effort for every method.

Nine trials a method: five learning rates at the other settings' first values,
then four trials at the best of them, one other setting changed in each. A
setting with a dot goes into the options of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NUM_RATES, NUM_CHANGES = 5, 4

_NOTEBOOK = {"momentum": 0.999, "decay": 0.9}

# What a search starts from: the kind, and settings that are not searched.
BASES: dict[str, Mapping[str, Any]] = {
  **{
    name: {"kind": name}
    for name in (
      "sgd",
      "momentum",
      "nesterov",
      "adagrad",
      "adam",
      "muon",
      "soap",
    )
  },
  "rmsprop": {"kind": "rmsprop", "momentum": 0.9},
  "shampoo": {"kind": "shampoo", "update_every": 10},
  "kfac": {"kind": "kfac", "damping": 0.1, "kl_clip": 1.0},
  "locoprop_s": {
    "kind": "locoprop",
    "variant": "squared",
    "num_local_iters": 5,
    "inner_options": _NOTEBOOK,
  },
  "locoprop_s_exact": {
    "kind": "locoprop",
    "variant": "squared",
    "solver": "exact",
  },
  "locoprop_m": {
    "kind": "locoprop",
    "num_local_iters": 10,
    "inner_options": _NOTEBOOK,
  },
  "locoprop_m_fast": {
    "kind": "locoprop",
    "num_local_iters": 5,
    "max_rows": 125,
    "inner_options": {**_NOTEBOOK, "decay": 0.99},
  },
}

# Epochs for tuning at equal seconds: about what each method does on 2 cores in
# the time of 40 epochs of locoprop_m_fast. The benchmark itself goes by the
# seconds that it measures.
EPOCHS_IN_EQUAL_SECONDS = {
  "sgd": 77,
  "momentum": 77,
  "nesterov": 77,
  "adagrad": 72,
  "rmsprop": 72,
  "adam": 65,
  "muon": 31,
  "shampoo": 40,
  "soap": 35,
  "kfac": 30,
  "locoprop_s": 42,
  "locoprop_s_exact": 18,
  "locoprop_m": 14,
  "locoprop_m_fast": 40,
}

# Method -> learning rates, and changes to try at the best of them.
SPACES: dict[str, tuple[Sequence[float], Sequence[Mapping[str, Any]]]] = {
  "sgd": (
    (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    [{"clip_norm": c} for c in (1.0, 3.0, 10.0, 30.0)],
  ),
  "momentum": (
    (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    [{"momentum": m} for m in (0.8, 0.95, 0.98, 0.99)],
  ),
  "nesterov": (
    (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    [{"momentum": m} for m in (0.8, 0.95, 0.98, 0.99)],
  ),
  "adagrad": (
    (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    [{"initial_accumulator_value": v} for v in (1e-3, 1e-2, 1.0, 10.0)],
  ),
  "rmsprop": (
    (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    [
      {"momentum": 0.99},
      {"decay": 0.99},
      {"decay": 0.999},
      {"momentum": 0.95, "decay": 0.99},
    ],
  ),
  "adam": (
    (1e-3, 3e-3, 1e-2, 2e-2, 3e-2),
    [{"b1": 0.95}, {"b2": 0.99}, {"b1": 0.95, "b2": 0.99}, {"b2": 0.95}],
  ),
  "muon": (
    (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    [{"beta": 0.9}, {"beta": 0.98}, {"nesterov": False}, {"ns_steps": 3}],
  ),
  "shampoo": (
    (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    [{"b2": 0.95}, {"b2": 0.999}, {"eps": 1e-4}, {"b1": 0.95}],
  ),
  "soap": (
    (1e-3, 3e-3, 1e-2, 2e-2, 3e-2),
    [
      {"b2": 0.99},
      {"b1": 0.9},
      {"b1": 0.9, "b2": 0.99},
      {"precondition_frequency": 3},
    ],
  ),
  "kfac": (
    (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    [{"damping": 1.0}, {"damping": 0.01}, {"kl_clip": 0.1}, {"kl_clip": 10.0}],
  ),
  "locoprop_s": (
    (1e-5, 3e-5, 1e-4, 2e-4, 3e-4),
    [
      {"num_local_iters": 2},
      {"num_local_iters": 10},
      {"inner_options.momentum": 0.99},
      {"inner_options.decay": 0.99},
    ],
  ),
  "locoprop_s_exact": (
    (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    [{"gamma": g} for g in (3.0, 30.0, 100.0, 300.0)],
  ),
  "locoprop_m": (
    (3e-5, 1e-4, 2e-4, 3e-4, 1e-3),
    [
      {"gamma": 30.0},
      {"inner_options.momentum": 0.99},
      {"inner_options.decay": 0.99},
      {"inner_options.decay": 0.999},
    ],
  ),
  "locoprop_m_fast": (
    (1e-4, 3e-4, 1e-3, 2e-3, 3e-3),
    [
      {"num_local_iters": 3},
      {"inner_options.decay": 0.9},
      {"inner_options.decay": 0.999},
      {"max_rows": 62},
    ],
  ),
}
