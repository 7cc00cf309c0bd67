"""Prediction difference against loss, by activation and source of randomness.

Claim: with equal initialisation and moderate shuffling SmeLU lowers the
relative prediction difference of two retrained models at equal loss.

  python -m experiments.run --workdir runs/smelu_cpu \\
    --config experiments/smelu/configs/plane.py:cpu

Variants: tiny (seconds), cpu (synthetic clicks, minutes on 2 cores), pilot (the
same, one learning rate for all and a larger AdaGrad accumulator), dropout (what
dropout alone does), movielens, adult, mnist, fashion_mnist (real data), gpu
(more data, wider), paper (a model of the size of the Criteo sets, its table
sharded; for `--mode=check`).
"""

from ml_collections import ConfigDict

VARIANTS = (
  "tiny",
  "cpu",
  "pilot",
  "dropout",
  "movielens",
  "adult",
  "mnist",
  "fashion_mnist",
  "gpu",
  "paper",
)

ALL = (
  "relu",
  "smelu:0.1",
  "smelu:0.25",
  "smelu:0.5",
  "smelu:1",
  "smelu:2",
  "gsmelu:1",
  "swish:1",
  "swish:2",
  "gelu:1",
  "softplus:1",
  "softplus:4",
  "relu*3",
  "relu+warm",
)
SOME = ("relu", "smelu:0.5", "smelu:1", "swish:1")


def _conditions():
  """What varies between replicas, and the window of the shuffle in examples."""
  order = ("order",)
  return {
    "window_100": {"vary": order, "window": 100},
    "window_1000": {"vary": order, "window": 1000},
    "window_10000": {"vary": order, "window": 10_000},
    "full_shuffle": {"vary": order, "window": "full"},
    "init_window_1000": {"vary": ("init", "order"), "window": 1000},
    "init_only": {"vary": ("init",), "window": 1000},
    "rounding_only": {"vary": ("rounding",), "window": 1000},
    "dropout_only": {"vary": ("dropout",), "window": 1000},
    "labels_only": {"vary": ("labels",), "window": 1000},
  }


def get_config(variant: str = "cpu") -> ConfigDict:
  """The study at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.smelu.experiment"
  config.data = {
    "name": "synthetic_ctr",
    "data_dir": "",
    "num_train": 150_000,
    "num_test": 30_000,
  }
  config.model = {
    "preset": "small",
    "hidden": (),
    "normalization": "layer",
    "dropout_rate": 0.0,
  }
  config.optimizer = "adagrad"
  config.optimizer_options = {"initial_accumulator_value": 1e-3}
  config.learning_rates = (0.05, 0.1, 0.2, 0.4)
  config.learning_rate = 0.0
  config.tuned = {}
  config.tuning, config.validation = False, 0.1
  config.tuning_condition = "window_1000"
  config.batch_size, config.num_epochs, config.num_steps = 500, 1, 0
  config.eval_batch_size = 10_000
  config.num_replicas = 8
  config.rounding_ulps = 1.0
  config.conditions = _conditions()
  config.setting, config.condition = "relu", "window_1000"
  config.grid = {
    "window_1000": ALL,
    "full_shuffle": SOME,
    "window_100": SOME,
    "window_10000": SOME,
    "init_window_1000": SOME,
    "init_only": SOME,
    "rounding_only": SOME,
  }
  config.pd_floor = 0.0
  config.seed = 0
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.update(num_train=2000, num_test=500)
  config.batch_size, config.num_replicas = 100, 3
  config.learning_rates = (0.05, 0.1)
  config.grid = {
    "window_1000": ("relu", "smelu:0.5", "relu*2", "relu+warm"),
    "init_only": ("relu", "smelu:0.5"),
  }


def _cpu(config):
  del config


def _pilot(config):
  config.batch_size, config.learning_rate = 250, 0.1
  config.optimizer_options.initial_accumulator_value = 0.1


def _dropout(config):
  config.model.dropout_rate = 0.1
  config.grid = {"dropout_only": SOME}


def _movielens(config):
  config.data.update(name="movielens", num_train=0, num_test=0)
  config.batch_size = 250


def _adult(config):
  config.data.update(name="adult", num_train=0, num_test=0)
  config.batch_size = 100
  config.grid.window_10000 = ()


def _classes(config):
  config.model.update(hidden=(256, 128), normalization="layer")
  config.data.update(num_train=0, num_test=0)
  config.batch_size = 250
  config.learning_rates = (0.005, 0.01, 0.02, 0.05)
  config.grid = {
    "window_1000": ALL,
    "full_shuffle": SOME,
    "init_window_1000": SOME,
    "rounding_only": SOME,
    "labels_only": SOME,
  }


def _mnist(config):
  _classes(config)
  config.data.name = "mnist"


def _fashion_mnist(config):
  _classes(config)
  config.data.name = "fashion_mnist"


def _gpu(config):
  config.data.update(num_train=20_000_000, num_test=200_000)
  config.model.preset = "base"
  config.batch_size, config.num_replicas = 1000, 8
  config.grid.dropout_only = SOME
  config.model.dropout_rate = 0.1


def _paper(config):
  config.data.update(name="criteo", num_train=0, num_test=0)
  config.model.update(preset="criteo", normalization="layer")
  config.batch_size, config.num_steps = 65_536, 100_000
  config.num_replicas, config.learning_rate = 1, 0.02
  config.setting = "smelu:1"
  config.mesh = {"data": 4, "expert": 1, "model": 4}
  config.check = {
    "topology": "v5e:4x4",
    "hbm_bytes": 0,
    "allowed_collectives": (
      "all-gather",
      "all-reduce",
      "all-to-all",
      "collective-permute",
      "reduce-scatter",
    ),
  }
