"""The tiny pairs, LIMoE alone, its experts over two devices."""

from experiments.limoe.configs import pairs


def get_config(variant="tiny"):
  """One run."""
  config = pairs.get_config(variant)
  with config.unlocked():
    config.conditions = ("limoe",)
    config.mesh = {"data": 1, "expert": 2, "model": 1}
  return config
