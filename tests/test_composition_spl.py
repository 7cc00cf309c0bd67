"""Sub-pseudo labels under other systems: LocoProp's steps, CIW's weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.spl import methods
from locojax.core import labels as labels_lib
from locojax.core import metrics
from locojax.methods import ciw, locoprop, spl
from locojax.nn import mlp
from locojax.train import steps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEAK, TEACHER = RNG.integers(0, 3, (2, 48))
X = RNG.normal(size=(48, 6)).astype(np.float32)
X[np.arange(48), WEAK] += 2
X[np.arange(48), 3 + TEACHER] += 2
SPACE = spl.build_label_space(
  spl.confusion_matrix(WEAK, TEACHER, 3, 3), "occupied"
)


@functools.cache
def _start():
  net = mlp.MLP((12, SPACE.num_classes), activation=jnp.tanh)
  return net, jax.jit(net.init)(KEY, X)["params"]


def _loss(params, model_state, batch, key):
  """Pairs made inside the step, from both labels of the batch."""
  net, _ = _start()
  logits = net.apply({"params": params}, batch["x"])
  pairs = SPACE.encode(batch["weak"], batch["teacher"])
  loss = labels_lib.cross_entropy(logits, pairs).mean()
  return loss, ({"accuracy": metrics.accuracy(logits, pairs)}, model_state)


def test_pairs_under_locoprop():
  """Its local iterations fit the same labels, better than they were."""
  _, params = _start()
  tx = optax.sgd(0.1)
  step = locoprop.make_step(_loss, tx)
  state = steps.init_state(params, tx, key=KEY)
  batch = {"x": X, "weak": np.int32(WEAK), "teacher": np.int32(TEACHER)}
  run = jax.jit(step)
  before = _loss(state.params, {}, batch, KEY)[0]
  for _ in range(20):
    state, found = run(state, batch)
  after = _loss(state.params, {}, batch, KEY)
  assert after[0] < 0.8 * before
  assert after[1][0]["accuracy"].value() > 1.5 / SPACE.num_classes
  # The marginals of its pairs know both labels.
  net, _ = _start()
  probs = jax.nn.softmax(net.apply({"params": state.params}, X))
  for axis, labels in (("weak", WEAK), ("teacher", TEACHER)):
    marginal = spl.marginal_probs(probs, SPACE, axis=axis)
    assert np.mean(marginal.argmax(1) == labels) > 0.5


def test_weak_labels_with_ciw_weights():
  """The loss of `weak_ciw` is CIW's, and it couples the examples."""
  logits = RNG.normal(size=(48, 3)).astype(np.float32)
  setup = methods.Setup(3, {"ciw_lambda": 0.5})
  loss = methods.LOSSES["ciw"]
  run = jax.jit(lambda z: loss(setup, z, {"label": np.int32(WEAK)}, {}))
  weights = ciw.instance_weights(
    labels_lib.cross_entropy(logits, WEAK), divergence="kl", lam=0.5
  )
  wanted = jnp.sum(weights * labels_lib.cross_entropy(logits, WEAK))
  np.testing.assert_allclose(run(logits), wanted, rtol=1e-5)
  wrong = jnp.asarray(weights)[logits.argmax(1) != WEAK].mean()
  assert wrong < jnp.asarray(weights)[logits.argmax(1) == WEAK].mean()
