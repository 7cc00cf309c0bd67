"""Bad settings of `experiments/dp_ftrl/configs/classification.py`."""

from __future__ import annotations

NAN = float("nan")
_MIN_SEP = {"sampler.name": "min_sep"}

ROWS = [
  ("tiny", {"task": "clasification"}, "task", "mean 'classification'"),
  ("tiny", {"population": -1}, "population", "0 or more"),
  ("paper", {"population": 0}, "population", "1 or more"),
  ("mnist", {"data.name": "mnist"}, "data.name", "prepare_data"),
  ("tiny", {"data.pool": 3}, "data.pool", "a divisor of 8"),
  ("tiny", {"data.num_clients": 500}, "data.num_clients", "at most 288"),
  ("tiny", {"data.alpha": 0.0}, "data.alpha", "above 0"),
  ("tiny", {"data.seed": -1}, "data.seed", "[0, 4294967295]"),
  ("tiny", {"model.hidden": (-1,)}, "model.hidden", "each 1 or more"),
  ("tiny", {"num_rounds": 0}, "num_rounds", "1 or more"),
  ("tiny", {"cohort_size": 0}, "cohort_size", "1 or more"),
  ("tiny", {"cohort_size": 65}, "cohort_size", "at most 64"),
  ("cpu", {"cohort_size": 15}, "cohort_size", "a multiple of mesh.data * 14"),
  ("tiny", {"local_steps": 0}, "local_steps", "1 or more"),
  ("tiny", {"local_epochs": -1}, "local_epochs", "1 or more"),
  ("tiny", {"client_rate": NAN}, "client_rate", "above 0"),
  ("tiny", {"clip_norm": 0.0}, "clip_norm", "above 0"),
  ("tiny", {"momentum": 1.0}, "momentum", "[0.0, 1.0)"),
  ("tiny", {"clients_per_chunk": 3}, "cohort_size", "which is 3"),
  ("tiny", {"sampler.name": "epoch"}, "sampler.name", "mean 'epochs'"),
  ("tiny", {"sampler.min_sep": 4}, "sampler.min_sep", "name='epochs'"),
  (
    "cpu",
    {**_MIN_SEP, "sampler.min_sep": 30},
    "sampler.min_sep",
    "at most 20",
  ),
  ("tiny", {"restart.period": -1}, "restart.period", "0 or more"),
  ("tiny", {"restart.warmup": 6}, "restart.warmup", "below the period, 6"),
  ("tiny", {"clip.quantile": 1.5}, "clip.quantile", "in [0.0, 1.0]"),
  ("tiny", {"clip.learning_rate": 0.0}, "clip.learning_rate", "above 0"),
  ("adaptive", {"clip.count_stddev": 0.1}, "clip.count_stddev", "adaptive"),
  ("tiny", {"clip_norms": (0.5, 0.0)}, "clip_norms", "above 0"),
  ("tiny", {"delta": 0.0}, "delta", "(0.0, 1.0)"),
  ("tiny", {"delta": 1.0}, "delta", "(0.0, 1.0)"),
  ("tiny", {"methods": ("tree",)}, "methods", "'tree_basic'"),
  ("tiny", {"methods": ()}, "methods", "1 or more"),
  ("tiny", {"rhos": ()}, "rhos", "1 or more"),
  ("tiny", {"rhos": (1.0, 0.0)}, "rhos", "above 0"),
  ("tiny", {"rhos": (NAN,)}, "rhos", "above 0"),
  ("tiny", {"rho": -1.0}, "rho", "above 0"),
  ("tiny", {"method": "treehonaker"}, "method", "mean 'tree_honaker'"),
  ("tiny", {"server_rates": ()}, "server_rates", "1 or more"),
  ("tiny", {"server_rate": 0.0}, "server_rate", "above 0"),
  ("tiny", {"seeds": (0, 1000)}, "seeds", "without 1000"),
  ("tiny", {"eval_batch_size": 0}, "eval_batch_size", "1 or more"),
  ("paper", {"cohort_size": 90}, "cohort_size", "which is 96"),
]
FLAGS = [
  (["--config.rhos=(0.0,)"], "rhos", "(0.0,)", "above 0"),
  (["--config.cohort_size=100"], "cohort_size", "100", "at most 64"),
  (["--config.delta=2"], "delta", "2", "(0.0, 1.0)"),
]
LEGAL: dict[str, str] = {}
