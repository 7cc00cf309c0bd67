"""Federated next-word prediction, with several mechanisms at equal rho.

  python -m experiments.run --workdir runs/dp_words \\
    --config experiments/dp_ftrl/configs/next_word.py:cpu

Variants: tiny (seconds), cpu (the files of Python's standard library are the
clients), shakespeare (speaking roles; `--config.data.path=` JSON lines), folder
(any folder of text files, `--config.data.path=DIR`; one method and seed), gpu,
paper (2000 rounds of 6528 devices, 1.4 million parameters; for `--mode=check`).
"""

from ml_collections import ConfigDict

VARIANTS = ("tiny", "cpu", "shakespeare", "folder", "gpu", "paper")
METHODS = (
  "none",
  "independent",
  "amplified",
  "tree_basic",
  "tree_honaker",
  "blt",
)


def get_config(variant: str = "cpu") -> ConfigDict:
  """The experiment at one of `VARIANTS`."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r} is not allowed: one of {VARIANTS}.")
  config = ConfigDict()
  config.experiment = "experiments.dp_ftrl.experiment"
  config.task, config.needs_data, config.population = "next_word", True, 0
  config.data = {
    "name": "stdlib",
    "path": "",
    "unit": "file",
    "num_words": 1000,
    "length": 16,
    "max_sentences": 64,
    "min_sentences": 4,
    "num_held_out": 20,
    "num_test": 2000,
    "seed": 0,
  }
  config.model = {"preset": "cifg_cpu"}
  config.num_rounds, config.cohort_size = 120, 16
  config.local_steps, config.local_epochs, config.batch_size = 4, 1, 16
  config.client_rate, config.clip_norm, config.momentum = 1.0, 1.0, 0.9
  config.clients_per_chunk = 4
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
  config.methods, config.rhos = METHODS, (2.0, 32.0)
  config.method, config.rho, config.server_rate = "tree_honaker", 2.0, 0.3
  config.server_rates = (0.1, 0.3, 1.0)
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
  config.data.update(num_words=100, max_sentences=8, length=8, num_test=100)
  config.model.preset = "cifg_tiny"
  config.num_rounds, config.cohort_size, config.local_steps = 4, 8, 1
  config.clients_per_chunk, config.batch_size = 1, 8
  config.methods = ("none", "tree_honaker")
  config.rhos, config.seeds, config.server_rates = (2.0,), (0,), (0.3,)


def _cpu(config):
  del config


def _shakespeare(config):
  config.data.update(name="roles", num_held_out=100)
  config.num_rounds, config.cohort_size, config.clip_norm = 240, 20, 0.3
  config.local_steps = 2  # half of the roles fill one batch at most
  config.server_rates = (0.1, 0.3, 1.0, 3.0)


def _folder(config):
  """One method; others by `--config.methods`, as of `METHODS`."""
  config.data.name = "folder"
  config.methods, config.rhos = ("tree_honaker",), (2.0,)
  config.seeds = (0,)


def _gpu(config):
  _shakespeare(config)
  config.data.update(num_words=4000, length=20, max_sentences=256)
  config.model.preset, config.clip_norm = "cifg_small", 1.0
  config.num_rounds, config.cohort_size, config.local_steps = 1600, 100, 16
  config.clients_per_chunk = 100


def _paper(config):
  config.needs_data = False
  config.data.update(num_words=9996, length=20, max_sentences=256)
  config.model.preset = "cifg_production"
  # 2000 rounds of 6500 devices; 6528 divides over 16 chips in chunks of 8.
  config.population, config.num_rounds, config.cohort_size = (
    2_050_000,
    2000,
    6528,
  )
  config.local_steps, config.batch_size = 16, 16
  config.clients_per_chunk = 8
  config.delta, config.rho = 1e-10, 79 / 98
  config.mesh = {"data": 16, "expert": 1, "model": 1}
  config.check = {
    "topology": "v5e:4x4",
    "hbm_bytes": 0,
    "allowed_collectives": ("all-reduce",),
  }
