"""Loss x step builder x transformation are free axes: every triple runs."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.core import metrics
from locojax.methods import locoprop
from locojax.nn import mlp
from locojax.train import optimizers, steps
from tests import programs

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.random((8, 6), np.float32),
  "label": RNG.integers(0, 3, 8),
  "mask": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
}


class Normed(nn.Module):
  """Dense layers with batch statistics and dropout between them."""

  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=False, name="norm")(
      nn.Dense(5, name="one")(x)
    )
    x = nn.Dropout(0.1, deterministic=False)(jnp.tanh(x))
    return nn.Dense(3, name="two")(x)


def _autoencoder():
  model = mlp.Autoencoder(6, (5,), 2)

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["image"])
    each = optax.sigmoid_binary_cross_entropy(logits, batch["image"]).sum(-1)
    return each.mean(), ({}, model_state)

  return loss_fn, programs.init(model, KEY, BATCH["image"])["params"], {}


def _masked():
  model = mlp.MLP((5, 3), activation=jnp.tanh)

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({"params": params}, batch["image"])
    each = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    )
    loss = metrics.mean(each, batch["mask"])
    right = metrics.accuracy(logits, batch["label"], batch["mask"])
    return loss.value(), ({"loss": loss, "accuracy": right}, model_state)

  return loss_fn, programs.init(model, KEY, BATCH["image"])["params"], {}


def _stateful():
  model = Normed()
  variables = programs.init(
    model, {"params": KEY, "dropout": KEY}, BATCH["image"]
  )

  def loss_fn(params, model_state, batch, key):
    logits, new = model.apply(
      {"params": params, **model_state},
      batch["image"],
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    each = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    )
    return each.mean(), ({}, dict(new))

  return (
    loss_fn,
    variables["params"],
    {"batch_stats": variables["batch_stats"]},
  )


LOSSES = {
  "autoencoder": _autoencoder,
  "masked": _masked,
  "stateful": _stateful,
}
BUILDERS = {
  "plain": steps.from_loss,
  "microbatches": lambda *a: steps.from_loss(*a, num_microbatches=4),
  "locoprop": locoprop.make_step,
}
TRANSFORMS = {
  "adam": lambda: optax.adam(1e-2),
  "chain": lambda: optimizers.make(
    "momentum",
    learning_rate=1e-2,
    clip_norm=1.0,
    weight_decay=1e-3,
    decay_paths="kernel",
  ),
  "freeze": lambda: optimizers.make(
    "rmsprop", learning_rate=1e-2, freeze_paths="bias"
  ),
  "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
  "locoprop": lambda: locoprop.locoprop(
    1e-3, transfers={".*": "tanh"}, fallback=optax.adam(1e-2)
  ),
  "clip and locoprop": lambda: optax.chain(
    optax.clip_by_global_norm(1.0),
    locoprop.locoprop(
      1e-3,
      "adam",
      variant="squared",
      num_local_iters=2,
      fallback=optax.adam(1e-2),
    ),
    optax.add_decayed_weights(-1e-4),
  ),
}
LOCOPROPS = {
  "matching": {},
  "targets": {"clip_targets": 0.01},
  "gram": {"variant": "squared", "gram": True},
  "no gram": {"variant": "squared", "gram": False},
  "exact": {"variant": "squared", "solver": "exact"},
}
TRIPLES = [
  (loss, builder, tx)
  for loss, builder, tx in itertools.product(LOSSES, BUILDERS, TRANSFORMS)
  # LocoProp needs the tape that only its own builder makes.
  if builder == "locoprop" or "locoprop" not in tx
]


@pytest.mark.parametrize("loss, builder, transform", TRIPLES)
def test_every_triple_takes_steps(loss, builder, transform):
  loss_fn, params, model_state = LOSSES[loss]()
  tx = TRANSFORMS[transform]()
  state = steps.init_state(params, tx, key=KEY, model_state=model_state)
  step = jax.jit(BUILDERS[builder](loss_fn, tx))
  first = state
  for _ in range(2):
    state, measured = step(state, BATCH)
  assert step._cache_size() == 1
  assert int(state.step) == 2
  assert np.isfinite(metrics.values(measured)["loss"])
  assert jax.tree.structure(state) == jax.tree.structure(first)
  moved = [
    bool((a != b).any())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params))
  ]
  assert all(moved) if transform != "freeze" else any(moved)


@pytest.mark.parametrize("builder", ["plain", "locoprop"])
def test_wrappers_go_around_any_builder(builder):
  loss_fn, params, model_state = _masked()
  tx = TRANSFORMS["locoprop" if builder == "locoprop" else "adam"]()
  step = BUILDERS[builder](loss_fn, tx)

  def flip(batch, key):
    return {**batch, "image": batch["image"][:, ::-1]}

  wrapped = steps.with_ema(steps.with_batch(step, flip), decay=0.5)
  state = steps.init_state(params, tx, key=KEY, model_state=model_state)
  new, _ = wrapped(steps.init_ema(state), BATCH)
  flipped = {**BATCH, "image": BATCH["image"][:, ::-1]}
  expected, _ = step(state, flipped)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    new.params,
    expected.params,
  )
  average = steps.ema_state(new).params
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-6),
    average,
    params,
    expected.params,
  )


@pytest.mark.parametrize("name", [*LOCOPROPS, "plain"])
def test_masked_is_removed_for_every_builder(name):
  loss_fn, params, _ = _masked()
  batch = {**BATCH, "image": BATCH["image"].copy()}
  batch["image"][6:] = 100.0
  kept = {k: v[:6] for k, v in BATCH.items()}
  if name == "plain":
    tx = optax.adam(1e-2)
    step = steps.from_loss(loss_fn, tx)
  else:
    tx = locoprop.locoprop(
      1e-3,
      "sgd",
      transfers={"layer_0": "tanh", ".*": "softmax"},
      num_local_iters=4,
      **LOCOPROPS[name],
    )
    step = locoprop.make_step(loss_fn, tx, row_mask=lambda b: b["mask"])
  state = steps.init_state(params, tx, key=KEY)
  (a, _), (b, _) = step(state, batch), step(state, kept)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    a.params,
    b.params,
  )
