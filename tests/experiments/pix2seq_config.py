"""The tiny canvases, one method without pre-training, for two processes."""

from experiments.pix2seq.configs import detection


def get_config(variant="tiny"):
  """One run."""
  config = detection.get_config(variant)
  with config.unlocked():
    config.methods, config.pretrain.num_steps = ("augmented",), 0
    config.sweeps.top_p = (0.4,)
    config.mesh = {"data": 2, "model": 1}
  return config
