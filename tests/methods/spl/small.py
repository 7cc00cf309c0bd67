"""Losses of sub-pseudo labels and their baselines, for the table of masks."""

from __future__ import annotations

import numpy as np

from locojax.methods import spl


def masked(num):
  """Losses of logits of three classes, with integer labels.

  Returns:
    A function of parameters, inputs and mask; `num` inputs; parameters.
  """

  def f(params, inputs, mask):
    z, y = inputs["logits"], inputs["labels"]
    rows = {"index": inputs["index"], "weight_decay": 0.5, "mask": mask}
    return {
      "distillation": spl.distillation_loss(z, inputs["teacher"], mask=mask),
      "two_heads": spl.two_head_loss(z, inputs["teacher"], y, y, mask=mask),
      "data": spl.data_parameter_loss(z, y, params, **rows),
    }

  rng = np.random.default_rng(0)
  inputs = {
    "logits": np.float32(rng.normal(size=(num, 3))),
    "teacher": np.float32(rng.normal(size=(num, 3))),
    "labels": np.arange(num, dtype=np.int32) % 3,
    "index": np.arange(num, dtype=np.int32),
  }
  params = {
    "class": np.float32(rng.normal(size=3)),
    "clip": np.float32(rng.normal(size=num)),
  }
  return f, inputs, params
