"""Bad settings of `experiments/ciw/configs/two_moons.py`."""

from __future__ import annotations

NAN = float("nan")

ROWS = [
  ("tiny", {"data.num_train": 1}, "data.num_train", "[2, "),
  ("tiny", {"data.noise": -0.1}, "data.noise", "0 or more"),
  ("tiny", {"data.flips": 1.5}, "data.flips", "in [0.0, 1.0]"),
  ("tiny", {"hidden": (64, 0)}, "hidden", "each 1 or more"),
  ("tiny", {"batch_size": 401}, "batch_size", "at most 400"),
  ("tiny", {"num_epochs": 0}, "num_epochs", "1 or more"),
  ("tiny", {"learning_rate": NAN}, "learning_rate", "above 0"),
  ("tiny", {"momentum": -0.9}, "momentum", "[0.0, 1.0)"),
  ("tiny", {"burnin_epochs": -1}, "burnin_epochs", "0 or more"),
  ("tiny", {"anneal_epochs": -1}, "anneal_epochs", "0 or more"),
  ("tiny", {"table.ce.loss": "cross"}, "table.ce.loss", "'cross_entropy'"),
  ("tiny", {"table.ce.los": "nce_rce"}, "setting of table.ce", "'loss'"),
  (
    "tiny",
    {"table.ciw_kl.instance.lam": 0.0},
    "table.ciw_kl.instance.lam",
    "above 0",
  ),
  ("tiny", {"table.ciw_kl.instance": {"divergence": "kl"}}, "ciw_kl", "'lam'"),
  (
    "tiny",
    {"table.cicw_kl_tv.classes.gamma": -1.0},
    "table.cicw_kl_tv.classes.gamma",
    "0 or more",
  ),
  ("tiny", {"methods": ()}, "methods", "1 or more"),
  ("tiny", {"methods": ("ce", "ciw_k")}, "methods", "mean 'ciw_kl'"),
  ("tiny", {"method": "cee"}, "method", "mean 'ce'"),
  ("tiny", {"burnin_method": "ciw"}, "burnin_method", "'ciw_kl'"),
  ("tiny", {"burnin_sweep": (10, -1)}, "burnin_sweep", "0 or more"),
  ("tiny", {"eval_every": 0}, "eval_every", "1 or more"),
  ("tiny", {"pictured": ("nce_rce",)}, "pictured", "'ciw_kl'"),
  ("tiny", {"pictured_replica": 2}, "pictured_replica", "num_replicas=2"),
  ("tiny", {"num_frames": -1}, "num_frames", "0 or more"),
  ("tiny", {"num_replicas": 0}, "num_replicas", "1 or more"),
]
FLAGS = [
  (["--config.num_frames=-1"], "num_frames", "-1", "0 or more"),
  (["--config.data.flips=2"], "data.flips", "2", "in [0.0, 1.0]"),
]
LEGAL: dict[str, str] = {}
