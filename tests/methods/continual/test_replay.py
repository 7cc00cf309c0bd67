"""Rehearsal: ER, DER++, GDumb, and that any loss can be replayed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import continual
from locojax.train import checkpoints, sharding, steps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
BATCH = {
  "x": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
  "label": jnp.array([0, 1, 1, 3]),
}
EXAMPLE = {"x": np.zeros(3, np.float32), "label": np.int32(0)}
DARK = {**EXAMPLE, "logits": np.zeros(4, np.float32)}


def _apply(params, model_state, batch, key):
  del key
  return batch["x"] @ params["w"], model_state


def _spy(params, model_state, batch, key):
  """A loss whose metric is the batch that it saw."""
  del params, key
  return jnp.float32(0), (dict(batch), model_state)


def _buffer(example=EXAMPLE, capacity=6, filled=0):
  buffer = continual.reservoir(example, capacity=capacity)
  if not filled:
    return buffer
  rng = np.random.default_rng(1)
  held = {
    "x": rng.normal(size=(filled, 3)).astype(np.float32),
    "label": np.full(filled, 2, np.int32),
    "logits": rng.normal(size=(filled, 4)).astype(np.float32),
  }
  held = {k: held[k] for k in example}
  return continual.insert(buffer, held, key=KEY)


def _state(buffer):
  return continual.with_replay({"other": jnp.ones(2)}, buffer, KEY)


def test_an_empty_buffer_leaves_the_loss_of_the_batch():
  plain = continual.cross_entropy(_apply)
  loss, (found, after) = jax.jit(continual.er(plain))(
    PARAMS, _state(_buffer()), BATCH, KEY
  )
  np.testing.assert_allclose(loss, plain(PARAMS, {}, BATCH, KEY)[0], rtol=1e-6)
  assert float(found["loss"].weight) == 4
  held = after["replay"]["buffer"]
  np.testing.assert_array_equal(held.examples["x"][:4], BATCH["x"])
  assert int(held.num_filled) == 4 and "other" in after


def test_the_loss_sees_the_batch_and_a_sample_of_the_past():
  run = jax.jit(continual.er(_spy, num_replay=3))
  _, (seen, after) = run(PARAMS, _state(_buffer(filled=5)), BATCH, KEY)
  np.testing.assert_array_equal(seen["x"][:4], BATCH["x"])
  assert seen["label"].tolist()[4:] == [2, 2, 2]
  assert seen["is_replay"].tolist() == [False] * 4 + [True] * 3
  assert seen["mask"].tolist() == [1] * 7
  past = {tuple(x) for x in _buffer(filled=5).examples["x"].tolist()}
  assert {tuple(x) for x in seen["x"][4:].tolist()} <= past
  assert int(after["replay"]["buffer"].num_seen) == 9


@pytest.mark.parametrize(
  ("replay_mask", "want"),
  [
    ("none", [True] * 4),
    ("reverse", [False, False, True, True]),
    ("same", [True, True, False, False]),
  ],
)
def test_class_masks_of_replayed_rows(replay_mask, want):
  classes = jnp.array([True, True, False, False])
  batch = continual.with_class_mask(BATCH, classes, 4, rows=4)
  run = jax.jit(continual.er(_spy, num_replay=2, replay_mask=replay_mask))
  _, (seen, _) = run(PARAMS, _state(_buffer(filled=5)), batch, KEY)
  rows = seen["class_mask"].tolist()
  assert rows == [classes.tolist()] * 4 + [want] * 2


def test_what_is_not_to_be_kept_is_not_offered():
  batch = {**BATCH, "mask": jnp.array([1.0, 1, 0, 1])}
  batch["insert"] = jnp.array([1.0, 0, 1, 1])
  run = continual.er(_spy, num_replay=1)
  _, (seen, after) = run(PARAMS, _state(_buffer()), batch, KEY)
  held = continual.contents(after["replay"]["buffer"])
  np.testing.assert_array_equal(held["x"], BATCH["x"][jnp.array([0, 3])])
  assert "insert" not in seen
  off = continual.er(_spy, num_replay=1, online=False)
  _, (_, after) = off(PARAMS, _state(_buffer()), BATCH, KEY)
  assert int(after["replay"]["buffer"].num_seen) == 0


def test_the_gradient_is_that_of_the_joined_batch():
  plain = continual.cross_entropy(_apply)
  model_state = _state(_buffer(filled=5))
  _, (seen, _) = continual.er(_spy)(PARAMS, model_state, BATCH, KEY)
  grad = jax.grad(lambda p, f, *a: f(p, *a)[0])
  got = grad(PARAMS, continual.er(plain), model_state, BATCH, KEY)
  want = grad(PARAMS, plain, {}, seen, KEY)
  np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-7)


def test_a_loss_that_couples_examples_still_does_and_others_do_not():
  coupled = continual.co2l(_apply)
  assert steps.is_coupled(coupled)
  assert steps.is_coupled(continual.er(coupled))
  assert not steps.is_coupled(continual.er(continual.cross_entropy(_apply)))
  with pytest.raises(ValueError, match="couples the examples"):
    steps.from_loss(coupled, optax.sgd(0.1), num_microbatches=2)


def test_der_is_cross_entropy_plus_logits_plus_labels():
  """With one example in the buffer both samples are it."""
  model_state = _state(_buffer(DARK, filled=1))
  held = continual.contents(model_state["replay"]["buffer"])
  run = continual.derpp(_apply, alpha=0.5, beta=2.0, num_replay=3)
  loss, (found, after) = jax.jit(run)(PARAMS, model_state, BATCH, KEY)
  plain = continual.cross_entropy(_apply)
  logits = held["x"] @ PARAMS["w"]
  gap = float(jnp.sum(jnp.square(logits - held["logits"])))
  again = plain(PARAMS, {}, held, KEY)[0]
  first = plain(PARAMS, {}, BATCH, KEY)[0]
  np.testing.assert_allclose(loss, first + 0.5 * gap + 2 * again, rtol=1e-5)
  np.testing.assert_allclose(found["replay_logits"].value(), gap, rtol=1e-5)
  np.testing.assert_allclose(found["replay_loss"].value(), again, rtol=1e-5)
  # The logits of the moment are kept beside the examples.
  kept = after["replay"]["buffer"]
  np.testing.assert_allclose(
    kept.examples["logits"][1:5], BATCH["x"] @ PARAMS["w"], rtol=1e-5
  )


def test_der_without_a_past_is_cross_entropy():
  run = continual.derpp(_apply, alpha=0.5, beta=2.0)
  loss, _ = run(PARAMS, _state(_buffer(DARK)), BATCH, KEY)
  want = continual.cross_entropy(_apply)(PARAMS, {}, BATCH, KEY)[0]
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_gradients_of_der_are_those_of_finite_differences():
  run = continual.derpp(_apply, alpha=0.5, beta=2.0)
  model_state = _state(_buffer(DARK, filled=5))
  loss = jax.jit(lambda w: run({"w": w}, model_state, BATCH, KEY)[0])
  direction = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
  w, eps = PARAMS["w"], 1e-2
  slope = (loss(w + eps * direction) - loss(w - eps * direction)) / (2 * eps)
  want = jnp.vdot(jax.grad(loss)(w), direction)
  np.testing.assert_allclose(slope, want, rtol=2e-3)


@jax.jit
def _step(state, batch):
  loss_fn = continual.er(continual.cross_entropy(_apply))
  return steps.from_loss(loss_fn, optax.sgd(0.1))(state, batch)


def _start(buffer):
  """With an accuracy matrix and a teacher beside the buffer."""
  model_state = continual.with_teacher(_state(buffer), PARAMS, num_classes=4)
  model_state["accuracies"] = continual.AccuracyMatrix.empty(2)
  params = jax.tree.map(jnp.array, PARAMS)
  return steps.init_state(
    params, optax.sgd(0.1), key=KEY, model_state=model_state
  )


def _between_tasks(state):
  own = state.model_state
  matrix = own["accuracies"].updated(0, [0.5])
  own = continual.remember(own, state.params, [0, 1])
  return state.replace(model_state={**own, "accuracies": matrix})


def test_a_resumed_stream_has_the_same_bits(tmp_path):
  """All that is remembered is in the state, and so in its checkpoint."""
  state = _start(_buffer())
  for _ in range(2):
    state, _ = _step(state, BATCH)
  state = _between_tasks(state)
  with checkpoints.Checkpoints(tmp_path / "ckpt", keep=1) as store:
    store.save(2, state, {})
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    resumed, _ = store.restore(abstract)
  for _ in range(2):
    state, _ = _step(state, BATCH)
    resumed, _ = _step(resumed, BATCH)
  assert jax.tree.structure(state) == jax.tree.structure(resumed)
  leaves = (jax.tree.leaves(s) for s in (state, resumed))
  for a, b in zip(*leaves, strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


def test_a_sharded_step_is_that_of_one_device():
  batch = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), BATCH)
  state = _start(_buffer(filled=5))
  one, found = _step(state, batch)
  for num in (2, 8):
    mesh = sharding.make_mesh({"data": num}, devices=jax.devices()[:num])
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    many, others = _step(
      jax.device_put(state, whole), jax.device_put(batch, rows)
    )
    np.testing.assert_allclose(one.params["w"], many.params["w"], rtol=1e-5)
    np.testing.assert_allclose(
      found["loss"].value(), others["loss"].value(), rtol=1e-6
    )
    buffers = [s.model_state["replay"]["buffer"].examples for s in (one, many)]
    jax.tree.map(np.testing.assert_array_equal, *buffers)


def test_gdumb_trains_on_a_balanced_buffer_alone():
  buffer = continual.balanced(EXAMPLE, capacity=4, num_classes=4)
  buffer = continual.insert(buffer, BATCH, key=KEY, labels=BATCH["label"])
  held = continual.gdumb(buffer)
  assert sorted(held["label"].tolist()) == [0, 1, 1, 3]
  with pytest.raises(ValueError, match="kind 'reservoir'"):
    continual.gdumb(_buffer(filled=2))


def test_bad_arguments_are_refused():
  plain = continual.cross_entropy(_apply)
  with pytest.raises(ValueError, match="num_replay=0"):
    continual.er(plain, num_replay=0)
  with pytest.raises(ValueError, match="replay_mask='all'"):
    continual.er(plain, replay_mask="all")
  with pytest.raises(ValueError, match="alpha=-1"):
    continual.derpp(_apply, alpha=-1, beta=0)
  with pytest.raises(ValueError, match="'replay' is missing.*with_replay"):
    continual.er(plain)(PARAMS, {}, BATCH, KEY)
  with pytest.raises(ValueError, match=r"does not hold \['more'\]"):
    batch = {**BATCH, "more": jnp.zeros(4)}
    continual.er(plain)(PARAMS, _state(_buffer()), batch, KEY)
  with pytest.raises(ValueError, match="'logits' is missing"):
    run = continual.derpp(_apply, alpha=1, beta=1)
    run(PARAMS, _state(_buffer()), BATCH, KEY)
