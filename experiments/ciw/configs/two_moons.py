"""Two Moons with 30 % flipped labels: cross-entropy against CIW.

Claim: the weights keep what plain training unlearns; the clean test accuracy
after the last epoch is some points above that of cross-entropy.

  python -m experiments.run --workdir runs/two_moons \
    --config experiments/ciw/configs/two_moons.py:cpu

Variants: tiny (seconds), cpu (also lengths of burn-in; minutes on 2 cores),
paper (all methods, a longer animation). Of its figure the authors' blog post
says only: 30 % label noise, an MLP, SGD with momentum.
"""

from ml_collections import ConfigDict

VARIANTS = ("tiny", "cpu", "paper")


def _table():
  """Loss, instance weights and class weights of each method."""
  kl = {"divergence": "kl", "lam": 0.5}
  return {
    "ce": {"loss": "cross_entropy"},
    "ciw_kl": {"instance": dict(kl)},
    "ciw_kl_0p3": {"instance": {"divergence": "kl", "lam": 0.3}},
    "ciw_hellinger": {"instance": {"divergence": "hellinger", "lam": 0.3}},
    "ciw_reverse_kl": {"instance": {"divergence": "reverse_kl", "lam": 0.1}},
    "ciw_chi2": {"instance": {"divergence": "chi2", "lam": 1.5}},
    "cicw_kl_tv": {
      "instance": dict(kl),
      "classes": {"divergence": "tv", "gamma": 0.1},
    },
    "label_smoothing": {
      "loss": "label_smoothing",
      "loss_options": {"smoothing": 0.3},
    },
    "bootstrap_hard": {
      "loss": "bootstrap_hard",
      "loss_options": {"share": 0.2},
    },
    "bi_tempered": {
      "loss": "bi_tempered",
      "loss_options": {"t1": 0.7, "t2": 1.3},
    },
    "nce_rce": {
      "loss": "nce_rce",
      "loss_options": {"alpha": 1.0, "beta": 0.1},
    },
  }


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.ciw.two_moons"
  config.data = {"num_train": 400, "num_test": 2000, "noise": 0.1, "flips": 0.3}
  config.hidden = (128, 128, 128)
  config.batch_size = 50
  config.num_epochs = 2000
  config.learning_rate, config.momentum = 0.2, 0.9
  config.burnin_epochs, config.anneal_epochs = 80, 40
  config.table = _table()
  config.methods = tuple(_table())
  config.method = "ciw_kl"
  config.burnin_method, config.burnin_sweep = "ciw_kl", (10, 40, 80, 150)
  config.eval_every = 10
  config.pictured = ("ce", "ciw_kl")
  config.pictured_replica = 0
  config.num_frames = 20
  config.seed, config.num_replicas = 0, 5
  config.save_every = 0
  config.results = ""
  config.profile = {"start": 0, "num_steps": 0}
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.update(num_test=500)
  config.hidden = (64, 64, 64)
  config.num_epochs = 1000
  config.num_replicas = 2
  config.methods = ("ce", "ciw_kl")
  config.burnin_sweep, config.num_frames = (), 10


def _cpu(config):
  left_out = ("label_smoothing", "bootstrap_hard")
  config.methods = tuple(m for m in config.methods if m not in left_out)


def _paper(config):
  config.num_frames = 50
