"""Distillation from the past: LwF, BiC, Co2L."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import continual

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
OTHER = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
BATCH = {
  "x": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
  "label": jnp.array([2, 3, 3, 2, 3]),
}


def _apply(params, model_state, batch, key):
  del key
  return batch["x"] @ params["w"], model_state


def _softmax(z):
  p = np.exp(z - z.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


def _kl(z, teacher, classes, temperature):
  p = _softmax(np.float64(teacher)[:, classes] / temperature)
  q = _softmax(np.float64(z)[:, classes] / temperature)
  return (p * np.log(p / q)).sum(axis=-1)


# A worked number: teacher (ln 4, 0), student (0, 0), T = 2.
def test_distillation_of_two_classes():
  """p = (2/3, 1/3), q = (1/2, 1/2): KL = 2/3 ln 4/3 + 1/3 ln 2/3."""
  loss = lambda z: continual.distillation(
    z, jnp.array([[np.log(4.0), 0.0]]), temperature=2.0
  )[0]
  value, grads = jax.value_and_grad(loss)(jnp.zeros((1, 2)))
  want = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  # (q - p) / T.
  np.testing.assert_allclose(grads, [[-1 / 12, 1 / 12]], rtol=1e-5)


def test_distillation_is_over_the_classes_given():
  classes = np.array([True, False, True, True])
  z, teacher = RNG.normal(size=(2, 5, 4)).astype(np.float32)
  found = jax.jit(continual.distillation)(z, teacher, classes=classes)
  np.testing.assert_allclose(found, _kl(z, teacher, classes, 2), rtol=1e-4)
  zero = lambda z, **k: continual.distillation(z, z, **k)
  np.testing.assert_allclose(zero(z), 0, atol=1e-6)
  none = np.zeros(4, bool)
  loss = lambda z: continual.distillation(z, teacher, classes=none).sum()
  value, grads = jax.value_and_grad(loss)(z)
  assert float(value) == 0 and not np.asarray(grads).any()
  grads = jax.grad(lambda t: continual.distillation(z, t).sum())(teacher)
  assert not np.asarray(grads).any()


def _with_teacher(classes=(0, 1)):
  state = continual.with_teacher({"stats": jnp.ones(2)}, PARAMS, num_classes=4)
  return continual.remember(state, OTHER, list(classes))


def test_before_the_first_task_lwf_is_cross_entropy():
  state = continual.with_teacher(None, PARAMS, num_classes=4)
  loss, _ = jax.jit(continual.lwf(_apply))(PARAMS, state, BATCH, KEY)
  want = continual.cross_entropy(_apply)(PARAMS, {}, BATCH, KEY)[0]
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_lwf_adds_the_distance_to_the_old_logits_of_old_classes():
  run = continual.lwf(_apply, weight=0.5)
  batch = continual.with_class_mask(BATCH, [2, 3], 4, rows=5)
  batch["mask"] = jnp.array([1.0, 1, 1, 1, 0])
  state = _with_teacher()
  loss, (found, after) = jax.jit(run)(PARAMS, state, batch, KEY)
  ce = continual.cross_entropy(_apply)(PARAMS, {}, batch, KEY)[0]
  x = np.asarray(BATCH["x"])
  kl = _kl(x @ PARAMS["w"], x @ OTHER["w"], [0, 1], 2)[:4].mean()
  np.testing.assert_allclose(loss, ce + 0.5 * kl, rtol=1e-5)
  np.testing.assert_allclose(found["distillation"].value(), kl, rtol=1e-4)
  assert set(after) == {"stats", "teacher"}
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_teacher_adds_classes_and_keeps_no_teacher_inside():
  state = continual.remember(_with_teacher(), PARAMS, [2])
  assert state["teacher"].classes.tolist() == [True, True, True, False]
  assert set(state["teacher"].model_state) == {"stats"}
  with pytest.raises(ValueError, match=r"classes has ids \[9\].*in \[0, 3\]"):
    continual.remember(state, PARAMS, [9])
  with pytest.raises(ValueError, match="'teacher' is missing.*with_teacher"):
    continual.lwf(_apply)(PARAMS, {}, BATCH, KEY)
  with pytest.raises(ValueError, match="temperature=0"):
    continual.lwf(_apply, temperature=0)


# --- BiC ---


def test_a_correction_moves_the_new_classes_alone():
  new = jnp.array([False, True])
  found = continual.Correction(jnp.float32(2), jnp.float32(-1), new)
  assert found.apply([[1.0, 3.0]]).tolist() == [[1.0, 5.0]]


def test_bic_weighs_by_the_share_of_old_classes():
  """1 old class of 3 seen: loss = KL / 3 + 2 CE / 3."""
  state = continual.with_bic(None, PARAMS, num_classes=4)
  state = continual.bic_begin(state, [0])
  correction = continual.Correction(
    jnp.float32(0.5), jnp.float32(0.2), jnp.arange(4) == 0
  )
  state = continual.bic_end(state, OTHER, correction)
  state = continual.bic_begin(state, [2, 3])
  loss, (found, after) = jax.jit(continual.bic(_apply))(
    PARAMS, state, BATCH, KEY
  )
  x = np.asarray(BATCH["x"])
  kl = _kl(x @ PARAMS["w"], correction.apply(x @ OTHER["w"]), [0], 2).mean()
  seen = continual.with_class_mask(BATCH, [0, 2, 3], 4, rows=5)
  ce = continual.cross_entropy(_apply)(PARAMS, {}, seen, KEY)[0]
  np.testing.assert_allclose(loss, kl / 3 + 2 * ce / 3, rtol=1e-5)
  np.testing.assert_allclose(found["loss"].value(), loss, rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, after, state)
  # Two old classes: the teacher's corrected logits count.
  state = continual.bic_end(state, OTHER, correction)
  state = continual.bic_begin(state, [1])
  batch = {**BATCH, "label": jnp.ones(5, jnp.int32)}
  loss, _ = jax.jit(continual.bic(_apply))(PARAMS, state, batch, KEY)
  teacher = correction.apply(x @ OTHER["w"])
  kl = _kl(x @ PARAMS["w"], teacher, [0, 2, 3], 2).mean()
  ce = continual.cross_entropy(_apply)(PARAMS, {}, batch, KEY)[0]
  np.testing.assert_allclose(loss, 0.75 * kl + 0.25 * ce, rtol=1e-5)


def test_bic_of_the_first_task_is_cross_entropy():
  state = continual.with_bic(None, PARAMS, num_classes=4)
  state = continual.bic_begin(state, [2, 3])
  loss, _ = continual.bic(_apply)(PARAMS, state, BATCH, KEY)
  batch = continual.with_class_mask(BATCH, [2, 3], 4, rows=5)
  want = continual.cross_entropy(_apply)(PARAMS, {}, batch, KEY)[0]
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_the_fit_finds_a_bias_that_was_put_in():
  """Labels drawn from softmax(q), logits z of new classes biased."""
  rng = np.random.default_rng(2)
  q = 2 * rng.normal(size=(4000, 4))
  p = _softmax(q)
  labels = (rng.random((4000, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
  alpha, beta = 0.6, -1.5
  z = q.copy()
  z[:, 2:] = (q[:, 2:] - beta) / alpha
  fit = jax.jit(lambda z, y: continual.bic_fit(z, y, np.array([2, 3])))
  found = fit(z.astype(np.float32), labels)
  assert float(found.alpha) == pytest.approx(alpha, abs=0.05)
  assert float(found.beta) == pytest.approx(beta, abs=0.15)
  # It is a stationary point of the cross-entropy, by finite differences.

  def cost(a, b):
    moved = z.copy()
    moved[:, 2:] = a * z[:, 2:] + b
    log_p = np.log(_softmax(moved))
    return -log_p[np.arange(len(z)), labels].mean()

  a, b, eps = float(found.alpha), float(found.beta), 1e-4
  slopes = [
    (cost(a + eps, b) - cost(a - eps, b)) / (2 * eps),
    (cost(a, b + eps) - cost(a, b - eps)) / (2 * eps),
  ]
  assert np.abs(slopes).max() < 1e-4


def test_the_fit_heeds_the_mask_and_survives_separable_sets():
  z = np.float32([[3, 0], [0, 3], [9, 9]])
  found = jax.jit(
    lambda z: continual.bic_fit(
      z, jnp.array([0, 1, 1]), np.array([1]), mask=jnp.array([1, 1, 0])
    )
  )(z)
  assert np.isfinite(found.alpha) and np.isfinite(found.beta)
  corrected = found.apply(z)
  assert np.argmax(corrected[:2], axis=1).tolist() == [0, 1]
  with pytest.raises(ValueError, match="num_steps=0"):
    continual.bic_fit(z, [0, 1, 1], [1], num_steps=0)
  with pytest.raises(ValueError, match=r"labels holds 2\b.*in \[0, 1\]"):
    continual.bic_fit(z, [0, 1, 2], [1])


# --- Co2L ---

EMBEDDINGS = RNG.normal(size=(6, 3)).astype(np.float32)
CLASSES = np.array([0, 0, 1, 1, 2, 2])


def _relations(z, temperature, live=None):
  """softmax over the others, with -inf on the diagonal, in NumPy."""
  z = np.float64(z) / np.linalg.norm(z, axis=1, keepdims=True)
  scores = z @ z.T / temperature
  np.fill_diagonal(scores, -np.inf)
  if live is not None:
    scores[:, ~live] = -np.inf
  return _softmax(scores)


def test_the_contrast_by_hand():
  anchors = np.array([1, 1, 1, 0, 0, 0])
  found = continual.asymmetric_contrast(EMBEDDINGS, CLASSES, anchors=anchors)
  log_p = np.log(_relations(EMBEDDINGS, 0.5) + 1e-300)
  want = -np.mean([log_p[0, 1], log_p[1, 0], log_p[2, 3]])
  np.testing.assert_allclose(found.value(), want, rtol=1e-5)
  assert float(found.weight) == 3


def test_a_worked_contrast_of_orthogonal_pairs():
  """Equal pairs, orthogonal classes, t = 1: log(e + 2) - 1."""
  z = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]])
  found = continual.asymmetric_contrast(
    z, [0, 0, 1, 1], anchors=np.ones(4), temperature=1.0
  )
  np.testing.assert_allclose(found.value(), np.log(np.e + 2) - 1, rtol=1e-6)


def test_relations_by_hand():
  past = RNG.normal(size=(6, 2)).astype(np.float32)
  found = continual.relation_distillation(
    EMBEDDINGS, past, temperature=0.3, past_temperature=0.2
  )
  p, q = _relations(past, 0.2), _relations(EMBEDDINGS, 0.3)
  want = -np.mean(np.sum(p * np.log(q + 1e-300), axis=1))
  np.testing.assert_allclose(found.value(), want, rtol=1e-5)


def test_masked_rows_are_as_good_as_absent_from_both():
  live = np.array([1, 1, 0, 1, 1, 0])
  kept = live != 0
  holed = np.where(kept[:, None], EMBEDDINGS, 7.0)
  past = RNG.normal(size=(6, 3)).astype(np.float32)
  anchors = np.array([1, 1, 1, 1, 0, 0])
  pairs = [
    (
      continual.asymmetric_contrast(holed, CLASSES, anchors=anchors, mask=live),
      continual.asymmetric_contrast(
        EMBEDDINGS[kept], CLASSES[kept], anchors=anchors[kept]
      ),
    ),
    (
      continual.relation_distillation(holed, past, mask=live),
      continual.relation_distillation(EMBEDDINGS[kept], past[kept]),
    ),
  ]
  for masked, absent in pairs:
    np.testing.assert_allclose(masked.value(), absent.value(), rtol=1e-5)
    assert float(masked.weight) == float(absent.weight)
  # Row 3 lost its only positive.
  assert float(pairs[0][0].weight) == 2


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_grads(which, z):
  def loss(z):
    if which == "contrast":
      found = continual.asymmetric_contrast(z, CLASSES, anchors=np.ones(6))
    else:
      found = continual.relation_distillation(z, EMBEDDINGS)
    return found.value()

  return jax.value_and_grad(loss)(z)


@pytest.mark.parametrize("which", ["contrast", "relations"])
def test_gradients_are_those_of_finite_differences(which):
  rng = np.random.default_rng(3)
  z, direction = rng.normal(size=(2, 6, 3)).astype(np.float32)
  eps = 1e-2
  up, _ = _loss_and_grads(which, z + eps * direction)
  down, _ = _loss_and_grads(which, z - eps * direction)
  _, grads = _loss_and_grads(which, z)
  slope = np.vdot(grads, direction)
  np.testing.assert_allclose((up - down) / (2 * eps), slope, rtol=1e-2)
  # The length of an embedding does not matter.
  np.testing.assert_allclose(np.sum(grads * z, axis=1), 0, atol=1e-5)


def test_a_batch_of_one_class_or_one_row_is_finite():
  for num in (1, 2):
    z = EMBEDDINGS[:num]
    loss = lambda z: (
      continual.asymmetric_contrast(
        z, CLASSES[: len(z)], anchors=np.ones(len(z))
      ).total
    )
    assert np.isfinite(jax.grad(loss)(z)).all()
    past = lambda z: continual.relation_distillation(z, z).total
    assert np.isfinite(jax.grad(past)(z)).all()
  assert np.isfinite(jax.grad(loss)(np.zeros((2, 3), np.float32))).all()


def test_co2l_distils_from_the_second_task_on_and_replay_rows_are_no_anchors():
  batch = {"x": jnp.asarray(EMBEDDINGS), "label": jnp.asarray(CLASSES)}
  batch["is_replay"] = jnp.arange(6) >= 3
  run = jax.jit(continual.co2l(_apply, distill_weight=0.5))
  z = EMBEDDINGS @ PARAMS["w"]
  contrast = continual.asymmetric_contrast(
    z, CLASSES, anchors=np.arange(6) < 3
  ).value()
  state = continual.with_teacher(None, PARAMS, num_classes=4)
  loss, _ = run(PARAMS, state, batch, KEY)
  np.testing.assert_allclose(loss, contrast, rtol=1e-5)
  state = continual.remember(state, OTHER, [0])
  loss, (found, _) = run(PARAMS, state, batch, KEY)
  relations = continual.relation_distillation(
    z, EMBEDDINGS @ OTHER["w"]
  ).value()
  np.testing.assert_allclose(loss, contrast + 0.5 * relations, rtol=1e-5)
  np.testing.assert_allclose(
    found["distillation"].value(), relations, rtol=1e-5
  )


def test_bad_settings_of_co2l_are_refused():
  with pytest.raises(ValueError, match="past_temperature=0"):
    continual.co2l(_apply, past_temperature=0)
  with pytest.raises(ValueError, match="distill_weight=-1"):
    continual.co2l(_apply, distill_weight=-1)
  with pytest.raises(ValueError, match="anchors has shape"):
    continual.asymmetric_contrast(EMBEDDINGS, CLASSES, anchors=[1])
  with pytest.raises(ValueError, match="past_embeddings"):
    continual.relation_distillation(EMBEDDINGS, EMBEDDINGS[:2])
