"""The tiny classification, one method and one seed."""

from experiments.dp_ftrl.configs import classification


def get_config(variant="tiny"):
  """One tuning run and one run."""
  config = classification.get_config(variant)
  with config.unlocked():
    config.methods, config.seeds = ("tree_honaker",), (0,)
    config.server_rates = (0.1,)
  return config
