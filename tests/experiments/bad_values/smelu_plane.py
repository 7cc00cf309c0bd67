"""Bad settings of `experiments/smelu/configs/plane.py`."""

from __future__ import annotations

NAN = float("nan")
_ORDER = {"vary": ("order",), "window": 10}

ROWS = [
  ("tiny", {"data.name": "movielense"}, "data.name", "mean 'movielens'"),
  ("tiny", {"data.num_train": 0}, "data.num_train", "1 or more"),
  ("tiny", {"data.num_test": -1}, "data.num_test", "0 or more"),
  ("mnist", {"data.num_train": 60_001}, "data.num_train", "at most 60000"),
  (
    "fashion_mnist",
    {"data.name": "fashion_mnist"},
    "data.name",
    "prepare_data",
  ),
  ("movielens", {"data.name": "movielens"}, "data.name", "prepare_data"),
  ("paper", {"data.name": "criteo"}, "data.name", "--mode=check alone"),
  ("tiny", {"model.preset": "smal"}, "model.preset", "mean 'small'"),
  ("tiny", {"model.hidden": (32, -1)}, "model.hidden", "each 1 or more"),
  ("tiny", {"model.normalization": "batsh"}, "model.normalization", "'batch'"),
  ("mnist", {"model.normalization": "batch"}, "normalization", "for images"),
  ("tiny", {"model.dropout_rate": 1.0}, "model.dropout_rate", "[0.0, 1.0)"),
  ("tiny", {"optimizer": "adagrat"}, "optimizer", "mean 'adagrad'"),
  ("tiny", {"optimizer_options": {"b1": 0.9}}, "of optimizer_options", "'eps'"),
  ("tiny", {"learning_rates": (0.1, "x")}, "learning_rates", "above 0"),
  ("tiny", {"learning_rates": ()}, "learning_rates", "1 or more"),
  ("tiny", {"learning_rate": NAN}, "learning_rate", "0 or more"),
  ("tiny", {"validation": 1.0}, "validation", "(0.0, 1.0)"),
  ("tiny", {"tuning_condition": "window"}, "tuning_condition", "'window_100'"),
  ("tiny", {"batch_size": 2001}, "batch_size", "at most 2000"),
  ("tiny", {"batch_size": 1900}, "batch_size", "what validation leaves"),
  ("tiny", {"num_epochs": 0}, "num_epochs", "1 or more"),
  ("tiny", {"num_steps": -1}, "num_steps", "0 or more"),
  ("tiny", {"num_replicas": 0}, "num_replicas", "1 or more"),
  ("tiny", {"num_replicas": 1}, "num_replicas", "2 or more"),
  ("tiny", {"rounding_ulps": -1.0}, "rounding_ulps", "0 or more"),
  (
    "tiny",
    {"conditions.init_only": {"vary": ("ordre",), "window": 10}},
    "conditions.init_only.vary",
    "mean 'order'",
  ),
  (
    "tiny",
    {"conditions.init_only": {"vary": ("order",), "window": -3}},
    "conditions.init_only.window",
    "0 or more, or 'full'",
  ),
  ("tiny", {"setting": "smelo:1"}, "setting", "'smelu'"),
  ("tiny", {"setting": "relu*0"}, "setting", "1 or more"),
  ("tiny", {"setting": "relu+hot"}, "setting", "'+warm'"),
  ("tiny", {"setting": "smelu:-1"}, "setting", "0 or more"),
  ("tiny", {"condition": "init"}, "condition", "'init_only'"),
  ("tiny", {"condition": "labels_only"}, "labels_only.vary", "no classes"),
  ("tiny", {"condition": "dropout_only"}, "model.dropout_rate", "above 0"),
  ("tiny", {"grid.window_1000": ("relu", "swis:1")}, "grid", "'swish'"),
  ("tiny", {"grid.window_1000": ("relu",)}, "grid", "nothing to plot"),
  (
    "tiny",
    {"grid": {"no_such": ("relu",)}},
    "condition in grid",
    "'init_only'",
  ),
  ("tiny", {"pd_floor": -0.1}, "pd_floor", "in [0.0, 1.0]"),
  ("tiny", {"mesh.data": 8}, "batch_size", "multiple of mesh.data"),
]
FLAGS = [
  (["--config.num_replicas=0"], "num_replicas", "0", "1 or more"),
  (
    ["--config.learning_rates=(0.1, -1.0)"],
    "learning_rates",
    "(0.1, -1.0)",
    "above 0",
  ),
]
LEGAL: dict[str, str] = {
  "conditions.full_shuffle.window": "a number of examples will do",
}
