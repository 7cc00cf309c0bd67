"""Classification by pseudo-writers, with several mechanisms at equal rho.

Claim: DP-FTRL (tree noise) is above DP-FedAvg without amplification at every
rho, and above the amplified one where eps is not small.

  python -m experiments.run --workdir runs/dp_digits \\
    --config experiments/dp_ftrl/configs/classification.py:cpu

Variants: tiny (seconds), cpu (scikit-learn's digits, minutes on 2 cores),
adaptive (the same with fixed and adaptive norms, which start right or wrong by
10 either way), mnist, fashion_mnist (3000 pseudo-writers of 20 images, 14x14),
gpu (the same, whole images and a wider network), paper (cohorts of 96 of 3400
writers, sharded over 16 chips; for `--mode=check`).
"""

from ml_collections import ConfigDict

VARIANTS = (
  *("tiny", "cpu", "adaptive", "mnist", "fashion_mnist", "gpu", "paper"),
)
METHODS = (
  "none",
  "independent",
  "amplified",
  "tree_basic",
  "tree_honaker",
  "sqrt_toeplitz",
  "blt",
)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.dp_ftrl.experiment"
  config.task, config.needs_data, config.population = "classification", True, 0
  config.data = {
    "name": "digits",
    "data_dir": "",
    "pool": 1,
    "num_inputs": 64,
    "num_clients": 280,
    "examples_per_client": 5,
    "alpha": 0.3,
    "seed": 0,
  }
  config.model = {"hidden": (32,)}
  config.num_rounds, config.cohort_size = 160, 14
  config.local_steps, config.local_epochs, config.batch_size = 2, 2, 5
  config.client_rate, config.clip_norm, config.momentum = 0.5, 0.5, 0.9
  config.clients_per_chunk = 14
  # epochs: shuffled, without reshuffling. min_sep: devices check in by
  # themselves, at most once in min_sep rounds (0: an epoch).
  config.sampler = {"name": "epochs", "min_sep": 0, "max_participations": 0}
  # Of the methods that restart: rounds of a tree (0: of an epoch) and of the
  # first one (0: the same). Of adaptive clipping: from `clip_norm` to this
  # quantile; deviation of the count's noise (0: cohort_size / 20).
  config.restart = {"period": 0, "warmup": 0}
  config.clip = {"quantile": 0.5, "learning_rate": 0.2, "count_stddev": 0.0}
  # All methods at each of these (initial) norms; (): at `clip_norm` alone.
  config.clip_norms = ()
  config.delta = 1e-5
  config.methods, config.rhos = METHODS, (0.5, 8.0)
  config.method, config.rho, config.server_rate = "tree_honaker", 1.0, 0.5
  config.server_rates = (0.01, 0.03, 0.1, 0.3)
  config.seeds, config.seed = (0, 1, 2, 3, 4), 0
  config.eval_batch_size, config.save_every = 500, 0
  config.profile = {"start": 0, "num_steps": 0}
  config.results = ""
  config.rules = ()
  config.mesh = {"data": -1, "expert": 1, "model": 1}
  config.check = {"topology": "", "hbm_bytes": 0}
  globals()[f"_{variant}"](config)
  return config.lock()


def _tiny(config):
  config.data.num_clients, config.num_rounds, config.cohort_size = 64, 6, 8
  config.clients_per_chunk = 1
  config.methods = ("none", "independent", "tree_honaker")
  config.rhos, config.seeds = (1.0,), (0, 1)
  config.server_rates = (0.1, 0.3)


def _cpu(config):
  del config


def _adaptive(config):
  config.methods = (
    "none",
    "tree_honaker",
    "tree_honaker_restart",
    "tree_honaker_adaptive",
  )
  config.rhos, config.clip_norms = (8.0,), (0.05, 0.5, 5.0)
  config.restart.warmup = 5
  # 14 clients and a z of 1.6: the default, 0.7, would take all of the noise.
  config.clip.count_stddev = 2.0
  config.server_rates = (0.01, 0.1, 1.0)


def _mnist(config):
  config.data.update(
    name="mnist", pool=2, num_clients=3000, examples_per_client=20
  )
  config.num_rounds, config.cohort_size = 600, 50
  config.local_steps, config.local_epochs, config.batch_size = 2, 1, 10
  config.clients_per_chunk = 50
  config.rhos = (0.1, 1.0, 8.0)
  config.server_rates = (0.01, 0.03, 0.1, 0.3, 1.0)
  config.eval_batch_size = 1000


def _fashion_mnist(config):
  _mnist(config)
  config.data.name = "fashion_mnist"


def _gpu(config):
  _mnist(config)
  config.data.pool, config.model.hidden = 1, (256,)


def _paper(config):
  _gpu(config)
  config.needs_data, config.data.num_inputs = False, 784
  config.population, config.cohort_size, config.num_rounds = 3400, 96, 1600
  config.local_steps, config.batch_size = 7, 16
  config.clients_per_chunk = 6
  config.model.hidden = (512, 256)
  config.mesh = {"data": 16, "expert": 1, "model": 1}
  config.check = {
    "topology": "v5e:4x4",
    "hbm_bytes": 0,
    "allowed_collectives": ("all-reduce",),
  }
