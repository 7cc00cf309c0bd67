"""The tiny drawn videos, two methods, for two processes."""

from experiments.spl.configs import weak


def get_config(variant="tiny"):
  """One line of runs."""
  config = weak.get_config(variant)
  with config.unlocked():
    config.methods = ("weak", "spl_raw")
    config.mesh = {"data": 2}
  return config
