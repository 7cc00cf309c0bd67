"""What is not a layer of its own, wrappers that do not fit, masked rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from locojax.methods import locoprop
from locojax.train import steps
from tests import programs

KEY = jax.random.key(0)


class Tied(nn.Module):
  """Logits from the table of embeddings, by `attend` or by hand."""

  by_hand: bool = False

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(5, 4, name="embed")
    x = jnp.tanh(nn.Dense(4, name="hidden")(embed(tokens)))
    return x @ embed.embedding.T if self.by_hand else embed.attend(x)


class Normalised(nn.Module):
  kind: str

  @nn.compact
  def __call__(self, tokens):
    x = jax.nn.one_hot(tokens, 5)
    x = jnp.tanh(nn.Dense(4, name="hidden")(x))
    if self.kind == "weight":
      return nn.WeightNorm(nn.Dense(5, name="last"))(x)
    return nn.SpectralNorm(nn.Dense(5, name="last"))(x, update_stats=False)


def _made(model):
  tokens = np.array([0, 1, 2, 3, 4, 1])
  variables = programs.init(model, KEY, tokens)

  def loss_fn(params, model_state, batch, key):
    logits = model.apply({**variables, "params": params}, batch)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch)
    return jnp.mean(each), ({}, model_state)

  return loss_fn, variables["params"], tokens


@pytest.mark.parametrize(
  "model, path, why",
  [
    (Tied(), "embed", "used by its method 'attend' as well"),
    (Normalised("weight"), "last", "WeightNorm.*changes its parameters"),
    (Normalised("spectral"), "last", "SpectralNorm.*changes its parameters"),
  ],
)
def test_a_layer_that_is_more_than_its_calls(model, path, why):
  loss_fn, params, tokens = _made(model)
  everything = locoprop.locoprop(1e-2, fallback=optax.sgd(0.1))
  state = steps.init_state(params, everything, key=KEY)
  with pytest.raises(ValueError, match=f"{path}.*{why}.*fallback.*layers"):
    locoprop.make_step(loss_fn, everything)(state, tokens)
  _, grads, tape = locoprop.capture(loss_fn)(params, {}, tokens, KEY)
  assert path in locoprop.describe(tape, params).split("cannot be covered:")[1]
  # Left out, its parameters take the fallback and the other layer does not.
  for only in ({"layers": ("hidden",)}, {"transfers": {"hidden": "tanh"}}):
    tx = locoprop.locoprop(1e-2, "sgd", fallback=optax.sgd(0.1), **only)
    updates, _ = tx.update(grads, tx.init(params), params, tape=tape)
    outer = jax.tree.map(lambda g: -0.1 * g, grads)
    for name, expected in outer.items():
      same = jax.tree.map(
        lambda a, b: np.allclose(a, b, atol=1e-8), updates[name], expected
      )
      assert all(jax.tree.leaves(same)) == (name != "hidden"), name


def test_gradients_that_are_not_those_of_the_calls():
  loss_fn, params, tokens = _made(Tied(by_hand=True))
  _, grads, tape = locoprop.capture(loss_fn)(params, {}, tokens, KEY)
  with pytest.raises(ValueError, match="'embed'.*uses its parameters"):
    locoprop.verify_gradients(tape, params, grads)
  loss_fn, params, tokens = _made(nn.Embed(5, 5))
  _, grads, tape = locoprop.capture(loss_fn)(params, {}, tokens, KEY)
  locoprop.verify_gradients(tape, params, grads)


def test_wrappers():
  loss_fn, params, tokens = _made(nn.Embed(5, 5))
  _, grads, tape = locoprop.capture(loss_fn)(params, {}, tokens, KEY)
  tx = locoprop.locoprop(1e-2, "sgd")
  several = optax.MultiSteps(tx, 2)
  message = "MultiSteps.*adds up gradients, not tapes"
  with pytest.raises(ValueError, match=message):
    several.update(grads, several.init(params), params, tape=tape)
  for wrapped in (several, several.gradient_transformation()):
    state = steps.init_state(params, wrapped, key=KEY)
    with pytest.raises(ValueError, match=message):
      locoprop.make_step(loss_fn, wrapped)(state, tokens)
  # One that drops the tape; one that hands it on.
  dropping = optax.GradientTransformation(
    tx.init, lambda u, s, p: tx.update(u, s, p)
  )
  with pytest.raises(ValueError, match="tape=None.*drops.*the tape too"):
    state = steps.init_state(params, dropping, key=KEY)
    locoprop.make_step(loss_fn, dropping)(state, tokens)
  finite = optax.apply_if_finite(tx, 3)
  expected, _ = tx.update(grads, tx.init(params), params, tape=tape)
  got, state = finite.update(grads, finite.init(params), params, tape=tape)
  np.testing.assert_allclose(got["embedding"], expected["embedding"], atol=1e-7)
  bad = jax.tree.map(lambda g: g * jnp.nan, grads)
  got, _ = finite.update(bad, state, params, tape=tape)
  assert not got["embedding"].any()


def test_ids_of_the_host_are_never_wrapped():
  loss_fn, params, tokens = _made(nn.Embed(5, 5))
  for dtype, base in ((np.int64, 2**31), (np.uint64, 2**32)):
    ids = tokens.astype(dtype) + dtype(base)
    with pytest.raises(ValueError, match=f"batch has integers.*{base + 4}"):
      locoprop.capture(loss_fn)(params, {}, ids, KEY)


class Two(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name="b")(jnp.tanh(nn.Dense(4, name="a")(x)))


SETTINGS = [
  {},
  {"variant": "squared"},
  {"variant": "squared", "solver": "exact"},
  {"inner": "sgd", "local_reduction": "mean"},
  {"inner": "sgd", "target": "gd", "order": "gauss_seidel"},
]


@pytest.mark.parametrize("held", [np.nan, np.inf, 1e4])
def test_masked_rows_are_as_if_removed(held):
  model, rng = Two(), np.random.default_rng(0)
  x = rng.normal(size=(6, 3)).astype(np.float32)
  params = programs.init(model, KEY, x)["params"]

  def loss_fn(params, model_state, batch, key):
    out = model.apply({"params": params}, batch["x"])
    each = jnp.sum((out - 1.0) ** 2, axis=-1)
    each = jnp.where(batch["mask"] > 0, each, 0.0)
    return jnp.sum(each) / jnp.sum(batch["mask"]), ({}, model_state)

  mask = np.array([1, 1, 1, 0, 1, 0], np.float32)
  few = {"x": x[mask > 0], "mask": mask[mask > 0]}
  full = {"x": np.where(mask[:, None] > 0, x, held), "mask": mask}
  full["x"] = full["x"].astype(np.float32)

  @jax.jit
  def run(batch):
    out = []
    for settings in SETTINGS:
      tx = locoprop.locoprop(
        1e-2,
        num_local_iters=3,
        transfers={"a": "tanh", "b": "linear"},
        **settings,
      )
      state = steps.init_state(params, tx, key=KEY)
      step = locoprop.make_step(loss_fn, tx, row_mask=lambda b: b["mask"])
      out.append(step(state, batch)[0].params)
    return out

  for settings, got, expected in zip(SETTINGS, run(full), run(few)):
    jax.tree.map(
      lambda a, b, s=settings: np.testing.assert_allclose(
        a, b, atol=2e-6, err_msg=str(s)
      ),
      got,
      expected,
    )
