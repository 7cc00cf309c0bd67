"""Pix2Seq with parts of others: SmeLU inside, CIW weights on its loss."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from locojax.core import trees
from locojax.methods import ciw, pix2seq, smelu
from locojax.train import steps
from tests import programs

VOCAB = pix2seq.Vocabulary(num_classes=2, num_bins=8)
NUM = 3
RNG = np.random.default_rng(0)


def _batch(num: int = 8):
  corner = RNG.uniform(0, 0.5, (num, 2, 2))
  side = RNG.uniform(0.2, 0.5, (num, 2, 2))
  return {
    "image": RNG.integers(0, 256, (num, 16, 16, 3)).astype(np.uint8),
    "boxes": np.concatenate([corner, corner + side], -1).astype(np.float32),
    "labels": RNG.integers(1, 3, (num, 2)).astype(np.int32),
    "valid": np.ones((num, 2), bool),
  }


def test_a_detector_of_smelu_with_ciw_weights_learns():
  sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 32}
  activation = smelu.get_activation("smelu:0.5")
  net = pix2seq.preset(
    "tiny",
    VOCAB.size,
    max_len=5 * NUM,
    encoder={"width": 16, **sizes},
    decoder={"model_size": 16, **sizes},
    activation=activation,
    dropout=0.0,
    drop_path=0.0,
  )
  assert net.encoder.activation is net.decoder.activation is activation
  batch = _batch()
  tokens = np.zeros((1, 5 * NUM), np.int32)
  params = programs.init(net, jax.random.key(0), batch["image"][:1], tokens)[
    "params"
  ]
  losses_fn = pix2seq.make_losses_fn(net, VOCAB, max_objects=NUM)
  config = ciw.InstanceConfig(lam=0.5)
  loss_fn = ciw.reweight(losses_fn, config)
  assert steps.is_coupled(loss_fn)
  tx = pix2seq.pix2seq_adamw(1e-2, 30, decay="none")
  state = steps.init_state(params, tx, key=jax.random.key(1))
  key = state.step_key()
  each, _ = jax.jit(losses_fn)(params, {}, batch, key)
  weights = ciw.instance_weights(each, lam=0.5)
  step = jax.jit(steps.from_loss(loss_fn, tx))
  first = None
  for _ in range(30):
    state, found = step(state, batch)
    value = float(found["loss"].value())
    first = value if first is None else first
  want = float((weights * each).sum() / weights.sum())
  assert first == pytest.approx(want, rel=1e-4)
  assert value < 0.9 * first
  # The image with the largest loss weighs least.
  assert int(np.argmin(weights)) == int(np.argmax(each))
  assert all(np.isfinite(x).all() for x in trees.flatten(state.params).values())
