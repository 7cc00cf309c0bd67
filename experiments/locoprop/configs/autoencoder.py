"""Deep autoencoder: LocoProp against first- and second-order optimisers.

Claim: per epoch LocoProp-M is below every first-order method.

  python -m experiments.run --workdir runs/locoprop_cpu \
    --config experiments/locoprop/configs/autoencoder.py:cpu

Variants: tiny (seconds), cpu (CURVES 14x14, minutes on 2 cores), curves28,
mnist, fashion_mnist, digits (the same on other data, images of the latter three
small, learning rates chosen again), gpu (MNIST, 100 epochs), paper (the same,
sharded), ablation (settings of LocoProp on the data of cpu), notebook (settings
and schedule of the official code, for calibration). Tuned by
`python -m experiments.locoprop.tune` over the spaces in `search.py`.
"""

from ml_collections import ConfigDict

VARIANTS = (
  "tiny",
  "cpu",
  "curves28",
  "mnist",
  "fashion_mnist",
  "digits",
  "ablation",
  "gpu",
  "paper",
  "notebook",
)


def _optimizers():
  """Kind, learning rate and options of each method, as tuned on `cpu`."""
  rmsprop = {"momentum": 0.999, "decay": 0.9}
  return {
    "sgd": {"kind": "sgd", "learning_rate": 0.03},
    "momentum": {"kind": "momentum", "learning_rate": 0.01, "momentum": 0.8},
    "nesterov": {"kind": "nesterov", "learning_rate": 0.01, "momentum": 0.8},
    "adagrad": {"kind": "adagrad", "learning_rate": 0.1},
    "rmsprop": {"kind": "rmsprop", "learning_rate": 3e-3, "momentum": 0.9},
    "adam": {"kind": "adam", "learning_rate": 0.01, "b2": 0.95},
    "muon": {"kind": "muon", "learning_rate": 0.03, "beta": 0.9},
    "shampoo": {
      "kind": "shampoo",
      "learning_rate": 0.03,
      "b2": 0.95,
      "update_every": 10,
    },
    "soap": {
      "kind": "soap",
      "learning_rate": 0.03,
      "precondition_frequency": 3,
    },
    "kfac": {
      "kind": "kfac",
      "learning_rate": 0.01,
      "damping": 0.1,
      "kl_clip": 1.0,
    },
    "locoprop_s": {
      "kind": "locoprop",
      "variant": "squared",
      "learning_rate": 1e-4,
      "num_local_iters": 5,
      "inner_options": dict(rmsprop),
    },
    "locoprop_s_exact": {
      "kind": "locoprop",
      "variant": "squared",
      "solver": "exact",
      "learning_rate": 10.0,
      "gamma": 100.0,
    },
    "locoprop_m": {
      "kind": "locoprop",
      "learning_rate": 2e-4,
      "num_local_iters": 10,
      "inner_options": {"momentum": 0.999, "decay": 0.99},
    },
    "locoprop_m_fast": {
      "kind": "locoprop",
      "learning_rate": 1e-3,
      "num_local_iters": 5,
      "max_rows": 62,
      "inner_options": {"momentum": 0.999, "decay": 0.99},
    },
  }


def _tuned_for_seconds():
  """What tuning at equal seconds chose otherwise."""
  return {
    "adagrad": {"learning_rate": 0.03, "initial_accumulator_value": 0.01},
    "rmsprop": {"learning_rate": 3e-4},
    "muon": {"learning_rate": 0.1},
    "soap": {"learning_rate": 0.02},
    "locoprop_s_exact": {"learning_rate": 1.0},
  }


def get_config(variant: str = "cpu") -> ConfigDict:
  """The benchmark at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.locoprop.experiment"
  config.data = {
    "name": "curves",
    "size": 14,
    "num_train": 5000,
    "num_test": 1000,
    "data_dir": "",
  }
  config.needs_data = True
  config.num_train, config.num_inputs = 5000, 196
  config.model = {"hidden": (128, 64, 32), "code_size": 6, "activation": "tanh"}
  config.batch_size = 500
  config.num_epochs = 40
  config.num_evals = 20
  config.schedule, config.warmup, config.schedule_epochs = "linear", 0.05, 99
  config.optimizers = _optimizers()
  config.tuned_for_seconds = _tuned_for_seconds()
  config.rate_factor, config.rate_factors = 1.0, ()
  config.axis = "epochs"
  config.methods = tuple(config.optimizers)
  config.method = "locoprop_m"
  config.reference = "locoprop_m_fast"
  config.equal_seconds = True
  config.seed = 0
  config.seeds = (0,)
  config.save_every, config.keep = 0, 2
  config.results = ""
  config.profile = {"start": 0, "num_steps": 0}
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.rules = ()
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.update(size=8, num_train=200, num_test=50)
  config.model.update(hidden=(16,), code_size=3)
  config.num_train, config.num_inputs = 200, 64
  config.batch_size, config.num_epochs, config.num_evals = 40, 2, 2
  config.methods = ("sgd", "adam", "locoprop_m", "locoprop_s_exact")
  config.reference = "locoprop_m"


def _cpu(config):
  del config


def _other_data(config, name, size):
  """`cpu` on other data: each learning rate of `cpu` times a factor."""
  config.data.update(name=name, size=size)
  config.num_inputs = size * size
  config.rate_factors = (0.1, 0.3, 1.0, 3.0)
  config.seeds, config.equal_seconds = (0, 1, 2), False


def _curves28(config):
  _other_data(config, "curves", 28)


def _mnist(config):
  _other_data(config, "mnist", 14)


def _fashion_mnist(config):
  _other_data(config, "fashion_mnist", 14)


def _digits(config):
  _other_data(config, "digits", 8)
  config.data.update(num_train=1442, num_test=297)
  config.num_train, config.batch_size = 1442, 150


def _ablation(config):
  """LocoProp-M and -S with one thing changed at a time; Adam for its time."""
  base = {
    "kind": "locoprop",
    "learning_rate": 1e-3,
    "num_local_iters": 5,
    "inner_options": {"momentum": 0.999, "decay": 0.99},
  }
  inner = base["inner_options"]
  squared = {**_optimizers()["locoprop_s"], "gram": True}
  made = {"adam": _optimizers()["adam"]}
  for t in (1, 2, 5, 10, 20):
    for rate in (2e-4, 5e-4, 1e-3):
      made[f"T={t}_lr={rate:.0e}"] = {
        **base,
        "num_local_iters": t,
        "learning_rate": rate,
      }
  for rows in (250, 125, 62, 31):
    made[f"rows={rows}"] = {**base, "max_rows": rows}
  for name, momentum, rate in (
    ("0", 0.0, 1e-2),
    ("90%", 0.9, 3e-3),
    ("99%", 0.99, 2e-3),
  ):
    made[f"momentum={name}"] = {
      **base,
      "learning_rate": rate,
      "inner_options": {**inner, "momentum": momentum},
    }
  for name, decay in (("90%", 0.9), ("99_9%", 0.999)):
    made[f"decay={name}"] = {
      **base,
      "inner_options": {**inner, "decay": decay},
    }
  made["gamma=1"] = {**base, "gamma": 1.0, "learning_rate": 1e-2}
  made["gamma=100"] = {**base, "gamma": 100.0, "learning_rate": 1e-4}
  made["state_reset"] = {**base, "persist_inner_state": False}
  for rate, correction in ((1e-3, 0.1), (2e-4, 0.1), (5e-5, 0.1), (1e-3, 0.01)):
    made[f"gauss_seidel_{correction * 100:g}%_lr={rate:.0e}"] = {
      **base,
      "order": "gauss_seidel",
      "correction": correction,
      "learning_rate": rate,
    }
  made["s_gram"] = squared
  made["s_no_gram"] = {**squared, "gram": False}
  made["s_exact"] = _optimizers()["locoprop_s_exact"]
  config.optimizers = made
  config.tuned_for_seconds = {}
  config.methods, config.method = tuple(made), "T=5_lr=1e-03"
  config.equal_seconds = False
  config.seeds = (0, 1, 2)


def _full_mnist(config):
  """The benchmark of the paper: MNIST, 784-1000-500-250-30, batch 1000."""
  config.data = {
    "name": "mnist",
    "size": 28,
    "num_train": 60_000,
    "num_test": 10_000,
    "data_dir": "",
  }
  config.num_train, config.num_inputs = 60_000, 784
  config.model.update(hidden=(1000, 500, 250), code_size=30)
  config.batch_size, config.num_epochs, config.num_evals = 1000, 100, 50
  config.optimizers.locoprop_m.learning_rate = 1e-5
  config.optimizers.locoprop_s.learning_rate = 1e-5
  config.optimizers.locoprop_m_fast.learning_rate = 2e-5
  config.optimizers.locoprop_m_fast.max_rows = 250


def _gpu(config):
  _full_mnist(config)
  config.seeds = (0, 1, 2)


def _paper(config):
  _full_mnist(config)
  config.seeds = (0, 1, 2)
  config.needs_data = False
  config.batch_size = 1024
  config.mesh = {"data": 8, "expert": 1, "model": 2}
  config.rules = (
    ("(encoder|decoder)_\\d+/kernel$", (None, "model")),
    ("output/kernel$", (None, "model")),
  )
  config.check = {
    "topology": "v5e:4x4",
    "hbm_bytes": 0,
    "allowed_collectives": (
      "all-gather",
      "all-reduce",
      "collective-permute",
      "reduce-scatter",
    ),
  }


def _notebook(config):
  _full_mnist(config)
  config.methods = ()
  config.schedule, config.schedule_epochs = "notebook", 100
  config.num_epochs, config.num_evals = 99, 99
  config.save_every = 60
  config.optimizers.locoprop_m = {
    "kind": "locoprop",
    "learning_rate": 1e-5,
    "gamma": 10.0,
    "num_local_iters": 10,
    "inner_options": {"momentum": 0.999, "decay": 0.9, "eps": 1e-5},
  }
